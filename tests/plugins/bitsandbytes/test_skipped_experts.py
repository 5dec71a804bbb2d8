"""The skip list speaks of experts: what it names stays as it was stored, is estimated so, and compared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from zoo.sweeping import make

import loadkit
from loadkit.plugins import is_packed
from loadkit_plugins.bitsandbytes.packed.modules import is_carrier

Tiny = Callable[..., Path]


@pytest.mark.parametrize("profile", ["qlora", "qlora-8bit", "inference-4bit"])
@pytest.mark.parametrize(
    ("spelt", "kept"),
    [
        (["layers.0.mlp.experts"], [0]),  # as the model has it; the file says block_sparse_moe
        (["model.layers.1.mlp"], [1]),
        (["experts"], [0, 1]),
    ],
    ids=["one layer's", "a block", "all"],
)
def test_what_is_skipped_is_as_it_was_stored(
    tiny: Tiny, profile: str, spelt: list[str], kept: list[int]
) -> None:
    loaded = loadkit.load(tiny("mixtral"), profile, skip_modules=spelt, verify="full")
    model = getattr(loaded.model, "get_base_model", lambda: loaded.model)()
    plain = transformers.AutoModelForCausalLM.from_pretrained(tiny("mixtral"), dtype=torch.bfloat16)
    held = [layer.mlp.experts for layer in model.model.layers]
    assert [n for n, experts in enumerate(held) if not is_packed(experts.gate_up_proj)] == kept
    for n in kept:
        for name, stored in plain.model.layers[n].mlp.experts.named_parameters():
            assert torch.equal(held[n].get_parameter(name), stored)
    codes = [finding.code for finding in loaded.report.findings]
    assert not {"not-compared", "too-few-quantized", "estimate-off"} & {*codes}, loaded.report


@pytest.mark.parametrize(
    "model_type",
    [
        "granitemoe",
        "gpt_oss",
        *(
            pytest.param(kind, marks=pytest.mark.slow)
            for kind in (
                "mixtral",
                "jetmoe",
                "dbrx",
                "phimoe",
                "minimax",
                "aria",
                "nemotron_h",
                "mistral_large4",
            )
        ),
    ],
)
def test_a_path_of_the_model_is_known_whatever_the_files_call_it(tmp_path: Path, model_type: str) -> None:
    assert make(model_type, tmp_path / "made") == ""
    options = {"quantized_cache": False, "verify": "full"}
    model = loadkit.load(tmp_path / "made", "inference-4bit", **options).model
    packed = [path for path, module in model.named_modules() if is_carrier(module)]
    assert packed
    for path in packed:
        loaded = loadkit.load(tmp_path / "made", "inference-4bit", skip_modules=[path], **options)
        held = loaded.model.get_submodule(path)
        assert not is_carrier(held)
        codes = {finding.code for finding in loaded.report.findings}
        assert "too-few-quantized" not in codes, str(loaded.report)
