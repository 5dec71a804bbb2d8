"""What can't be merged is refused with its reason, before a byte is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from merging.conftest import Make
from safetensors.torch import load_file, save_file

import loadkit
from loadkit.testing.checkpoints import make_adapter, make_pickle_only, make_prequantized

Tiny = Callable[..., Path]
WEIGHTS = "adapter_model.safetensors"


def refused(adapter: Path, out: Path, **about: Any) -> set[str]:
    """The codes that a merge is refused with; nothing is left beside."""
    before = sorted(out.parent.rglob("*"))
    with pytest.raises(loadkit.PlanError) as caught:
        loadkit.merge(adapter, out, **about)
    assert sorted(out.parent.rglob("*")) == before
    assert "can't merge" in str(caught.value)
    return {problem.code for problem in caught.value.problems if problem.severity == "error"}


@pytest.fixture
def adapter(tiny: Tiny, tmp_path: Path) -> Path:
    return make_adapter(tmp_path / "adapter", tiny("mistral"))


def config_of(adapter: Path, **fields: Any) -> Path:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return adapter


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"peft_type": "ADALORA"}, "merge-type"),
        ({"peft_type": "PROMPT_TUNING"}, "merge-type"),
        ({"alora_invocation_tokens": [1, 2]}, "merge-type"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "merge-type"),
        ({"use_bdlora": {"nblocks": 2}}, "merge-type"),
        ({"init_lora_weights": "pissa"}, "merge-changed-base"),
        ({"init_lora_weights": "OLoRA"}, "merge-changed-base"),
        ({"init_lora_weights": "pissa_niter_4"}, "merge-changed-base"),
        ({"target_modules": "(a|aa)+b(a|aa)+$"}, "bad-pattern"),
    ],
)
def test_what_isnt_two_matrices(fields: dict[str, Any], code: str, adapter: Path, tmp_path: Path) -> None:
    assert refused(config_of(adapter, **fields), tmp_path / "out") == {code}


def test_bases_of_which_no_tensor_can_be_moved(adapter: Path, tiny: Tiny, tmp_path: Path) -> None:
    pickled = make_pickle_only(tmp_path / "pickled", tiny("mistral"))
    packed = make_prequantized(tmp_path / "packed", tiny("mistral"))
    about = {"base": packed, "check_adapter_base": False}
    assert refused(adapter, tmp_path / "out", **about) == {"merge-quantized"}
    assert refused(adapter, tmp_path / "out", dequantize=True, **about) == {"merge-stored"}
    about["base"] = pickled
    assert refused(adapter, tmp_path / "out", **about) == {"pickle-weights"}
    assert refused(adapter, tmp_path / "out", allow_pickle=True, **about) == {"merge-stored"}
    assert refused(tiny("mistral"), tmp_path / "out") == {"not-an-adapter"}


def test_files_that_dont_fit(adapter: Path, tmp_path: Path) -> None:
    tensors = load_file(adapter / WEIGHTS)
    name = sorted(tensors)[0]
    for change, code in (
        ({name: None}, "merge-incomplete"),
        ({"base_model.model.nowhere.lora_A.weight": torch.ones(8, 4)}, "merge-incomplete"),
        ({name: torch.full_like(tensors[name], float("nan"))}, "merge-not-finite"),
        ({name: torch.full_like(tensors[name], float("inf"))}, "merge-not-finite"),
        ({name: torch.ones(8, 3)}, "adapter-shape"),
    ):
        made = {key: value for key, value in (tensors | change).items() if value is not None}
        save_file(made, adapter / WEIGHTS, {"format": "pt"})
        assert refused(adapter, tmp_path / "out") == {code}


def test_a_link_out_of_the_adapters_folder(adapter: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.safetensors"
    shutil.move(adapter / WEIGHTS, secret)
    (adapter / WEIGHTS).symlink_to(secret)
    assert refused(adapter, tmp_path / "out") == {"link-outside"}


def test_models_that_keep_their_weights_tied(tiny: Tiny, adapted: Make, tmp_path: Path) -> None:
    config = peft.LoraConfig(task_type="SEQ_2_SEQ_LM", target_modules=["q"], modules_to_save=["lm_head"])
    assert refused(adapted(tiny("t5"), config), tmp_path / "out") == {"merge-tied"}


def test_places_that_mustnt_be_written(adapter: Path, tiny: Tiny, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny("mistral"), tmp_path / "base"))
    config_of(adapter, base_model_name_or_path=str(base))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").touch()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("full", "file", "link", "base", "adapter"):
        assert refused(adapter, tmp_path / name) == {"out-exists"}
    (base / "empty").mkdir()
    (tmp_path / "way").symlink_to(base)
    for name in ("base/out", "base/empty", "adapter/deep/er", "way/out"):
        assert refused(adapter, tmp_path / name) == {"out-inside"}


def test_a_disk_without_room(adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: real._replace(free=1000))
    assert refused(adapter, tmp_path / "out") == {"no-room"}


def test_a_base_that_lacks_what_is_to_move(adapter: Path, tiny: Tiny, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny("mistral"), tmp_path / "base"))
    tensors = load_file(base / "model.safetensors")
    del tensors["model.layers.0.self_attn.q_proj.weight"]
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    config_of(adapter, base_model_name_or_path=str(base))
    assert refused(adapter, tmp_path / "out") == {"merge-layout"}
