"""Quantized layers that aren't what they should be, each caught by the check that is for it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import msgspec
import pytest
import torch

import loadkit
from loadkit.audit.packed_modules import packed_findings
from loadkit.hooks.manager import default_manager

Tiny = Callable[..., Path]


def codes(loaded: loadkit.Loaded, **changes: Any) -> list[str]:
    plan = msgspec.structs.replace(loaded.plan, **changes) if changes else loaded.plan
    return [finding.code for finding in packed_findings(plan, loaded.model, default_manager())]


@pytest.fixture(params=["inference-4bit", "inference-8bit", "qlora", "qlora-8bit"])
def loaded(request: pytest.FixtureRequest, tiny: Tiny) -> loadkit.Loaded:
    return loadkit.load(tiny("mistral"), request.param)


def layers(model: Any) -> list[Any]:
    return [m for m in model.modules() if isinstance(m, bnb.nn.Linear4bit | bnb.nn.Linear8bitLt)]


def test_what_is_right_passes(loaded: loadkit.Loaded) -> None:
    assert layers(loaded.model)
    assert codes(loaded) == []


@pytest.mark.parametrize("by", [2, 0.5])
def test_a_layer_of_another_shape(loaded: loadkit.Loaded, by: float) -> None:
    """A config with other heads, head_dim or widths, over weights that are quantized: each side is whole."""
    layer = layers(loaded.model)[0]
    layer.out_features = int(layer.out_features * by)
    assert codes(loaded) == ["packed-shape"]


def test_the_same_count_in_another_shape(loaded: loadkit.Loaded) -> None:
    layer = next(each for each in layers(loaded.model) if each.in_features != each.out_features)
    layer.in_features, layer.out_features = layer.out_features, layer.in_features
    assert codes(loaded) == ["packed-shape"]


def test_a_layer_without_quantized_weights(loaded: loadkit.Loaded) -> None:
    layer = layers(loaded.model)[0]
    layer.weight = torch.nn.Parameter(torch.zeros(layer.out_features, layer.in_features), requires_grad=False)
    assert "hollow-layer" in codes(loaded)


def test_a_module_that_was_to_stay(loaded: loadkit.Loaded) -> None:
    assert loaded.plan.quantized is not None
    for skipped in ("mlp.up_proj", "q_proj", "layers.1"):
        asked = msgspec.structs.replace(loaded.plan.quantized, skip_modules=(skipped,))
        decisions = tuple(
            msgspec.structs.replace(d, value=asked) if d.stage == "quantization" else d
            for d in loaded.plan.decisions
        )
        plan = msgspec.structs.replace(loaded.plan, decisions=decisions)
        assert plan.quantized == asked
        found = packed_findings(plan, loaded.model, default_manager())
        assert [finding.code for finding in found] == ["skipped-but-packed"]


@pytest.mark.parametrize(("share", "severity"), [(0.5, "error"), (0.85, "warning"), (0.95, None)])
def test_less_than_planned(loaded: loadkit.Loaded, share: float, severity: str | None) -> None:
    memory = loaded.plan.memory
    assert memory is not None
    more = msgspec.structs.replace(memory, quantized=int(memory.quantized / share) + 1)
    plan = msgspec.structs.replace(loaded.plan, memory=more)
    found = packed_findings(plan, copy.copy(loaded.model), default_manager())
    assert [(f.code, f.severity) for f in found] == (
        [] if severity is None else [("too-few-quantized", severity)]
    )


def test_half_of_the_layers_left_out_fails_the_load(tiny: Tiny) -> None:
    """Some quantized layers aren't enough: the plan has said how many."""

    class Half:
        @loadkit.hookimpl
        def loadkit_load_model(self, plan: loadkit.Plan) -> Any:
            import transformers

            config = transformers.BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=torch.bfloat16, llm_int8_skip_modules=["model.layers.1", "model.layers.0.mlp", "lm_head"],
            )  # fmt: skip
            return transformers.AutoModelForCausalLM.from_pretrained(
                plan.checkpoint.location, dtype=torch.bfloat16, quantization_config=config
            )

    manager = loadkit.PluginManager(environ={})
    manager.register(Half(), "aaa-half")
    with pytest.raises(loadkit.AuditError) as caught:
        loadkit.load(tiny("mistral"), "inference-4bit", plugin_manager=manager)
    assert "too-few-quantized" in {f.code for f in caught.value.findings if f.severity == "error"}
