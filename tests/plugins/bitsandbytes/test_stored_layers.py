"""A stored checkpoint's list of what isn't quantized, against what its files hold."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import loadkit

LEFT = "llm_int8_skip_modules"


@pytest.fixture(scope="module", params=[4, 8])
def stored(request: pytest.FixtureRequest, tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files in which the query projections, and the head, aren't quantized."""
    folder = tmp_path_factory.mktemp("stored")
    kwargs: dict[str, Any] = {f"load_in_{request.param}bit": True}
    loaded = loadkit.load(tiny("llama"), skip_modules=["q_proj", "lm_head"], **kwargs)
    loaded.model.save_pretrained(folder)
    assert loaded.tokenizer is not None
    loaded.tokenizer.save_pretrained(folder)
    return folder


def with_config(stored: Path, folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    copy = shutil.copytree(stored, folder / "model")
    config = json.loads((copy / "config.json").read_text())
    change(config["quantization_config"])
    (copy / "config.json").write_text(json.dumps(config))
    return copy


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (None, "q_proj unquantized"),
        ([], "q_proj unquantized"),
        (["lm_head"], "q_proj unquantized"),
        (["q_proj", "lm_head", "k_proj"], "k_proj quantized"),
        ("q_proj", "isn't a list of names"),
    ],
)
def test_a_list_that_doesnt_fit_the_files_is_refused(
    stored: Path, tmp_path: Path, names: Any, said: str
) -> None:
    with pytest.raises(loadkit.PlanError) as refused:
        loadkit.plan(with_config(stored, tmp_path, lambda config: config.update({LEFT: names})))
    (problem,) = refused.value.problems
    assert problem.code == "format-config"
    assert said in problem.message


@pytest.mark.parametrize("spelt", ["modules_to_not_convert", "llm_int8_skip_module"])
def test_another_spelling_of_it_is_named(stored: Path, tmp_path: Path, spelt: str) -> None:
    """transformers drops it with a line in its log, and packs what the files hold in 16 bits."""

    def change(config: dict[str, Any]) -> None:
        config[spelt] = config.pop(LEFT)

    with pytest.raises(loadkit.PlanError, match=f"{spelt} is no field of it"):
        loadkit.plan(with_config(stored, tmp_path, change))


def test_patterns_and_ends_are_taken_as_transformers_takes_them(stored: Path, tmp_path: Path) -> None:
    names = ["model.layers.*.q_proj", "head"]
    plan = loadkit.plan(with_config(stored, tmp_path, lambda config: config.update({LEFT: names})))
    assert plan.quantization is not None
    assert plan.quantization.prequantized


def test_a_hollow_layer_is_told_as_one(stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from loadkit_plugins.bitsandbytes import checks

    monkeypatch.setattr(checks, "check_stored_layers", lambda *_: ())
    folder = with_config(stored, tmp_path, lambda config: config.pop(LEFT))
    with pytest.raises(loadkit.AuditError, match="hollow-layer"):
        loadkit.load(folder)
