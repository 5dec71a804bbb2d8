"""Weights that start anew because somebody asked: none is the files', it is said, and seeds repeat it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import loadkit

Tiny = Callable[..., Path]


def fresh(folder: Path, seed: int = 1, **options: Any) -> loadkit.Loaded:
    torch.manual_seed(seed)
    return loadkit.load(folder, random_weights=True, **options)


def test_no_weight_is_the_files(tiny: Tiny) -> None:
    loaded = fresh(tiny("mistral"))
    stored = load_file(tiny("mistral") / "model.safetensors")
    drawn = {n: p for n, p in loaded.model.named_parameters() if not n.endswith("norm.weight")}
    assert len(drawn) > 10
    for name, parameter in drawn.items():
        assert not torch.equal(parameter.detach().float(), stored[name].float()), name
    assert {w.code for w in loaded.plan.warnings} == {"random-weights"}
    assert [f.code for f in loaded.report.findings] == ["random-weights"]


def test_a_seed_repeats_it(tiny: Tiny) -> None:
    first, same, other = (fresh(tiny("mistral"), seed).model.state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(value, same[name]) for name, value in first.items())
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"load_in_4bit": True}, "quantization"),
        ({"verify": "full"}, "verify"),
        ({"device_map": "auto"}, "spread over devices"),
    ],
)
def test_what_cant_go_with_it_is_refused(tiny: Tiny, options: dict[str, Any], said: str) -> None:
    with pytest.raises(loadkit.PlanError, match="random-weights-beside") as caught:
        loadkit.plan(tiny("mistral"), random_weights=True, **options)
    assert said in str(caught.value)


@pytest.mark.parametrize(("value", "codes"), [(0.0, {"not-initialised"}), (0.5, set())])
def test_embeddings_without_values_are_an_error(tiny: Tiny, value: float, codes: set[str]) -> None:
    class Fills:
        @loadkit.hookimpl
        def loadkit_checkpoint_activations(self, model: Any) -> Any:
            torch.nn.init.constant_(model.get_input_embeddings().weight, value)
            model.activation_checkpointing_enable({"use_reentrant": False})
            return model

    manager = loadkit.PluginManager(environ={})
    manager.register(Fills(), "aaa-fills")
    try:
        findings = fresh(tiny("mistral"), profile="full", plugin_manager=manager).report.findings
    except loadkit.AuditError as error:
        findings = error.findings
    assert {f.code for f in findings if f.severity == "error"} == codes
