"""What of a base trains, and in which dtype: planned, loaded, and audited."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from examples import checkpoint, planned

import loadkit

FULL: dict[str, Any] = {"profile": "full", "dtype": "bfloat16", "gradient_checkpointing": False}


def dtypes(loaded: loadkit.Loaded, *, training: bool) -> set[torch.dtype]:
    return {p.dtype for p in loaded.model.parameters() if p.requires_grad is training}


def test_what_trains_is_in_float32_and_the_towers_are_frozen(tiny: Any) -> None:
    loaded = loadkit.load(
        tiny("gemma3"), **FULL, trainable_dtype="float32", frozen_parts=["towers", "projector"]
    )
    assert (dtypes(loaded, training=True), dtypes(loaded, training=False)) == (
        {torch.float32},
        {torch.bfloat16},
    )
    frozen = {n for n, p in loaded.model.named_parameters() if not p.requires_grad}
    assert frozen == {
        n for n, _ in loaded.model.named_parameters() if "vision_tower" in n or "projector" in n
    }
    memory = loaded.plan.memory
    assert memory is not None
    held = sum(p.numel() * p.element_size() for p in loaded.model.parameters())
    assert memory.model == pytest.approx(held, rel=0.02)
    assert memory.gradients == sum(
        p.numel() * p.element_size() for p in loaded.model.parameters() if p.requires_grad
    )


def test_layers_that_train(tiny: Any) -> None:
    loaded = loadkit.load(
        tiny("mistral"), **FULL, train_layers={"count": 1, "modules": ["mlp"], "also": ["lm_head"]}
    )
    trains = {n for n, p in loaded.model.named_parameters() if p.requires_grad}
    assert trains == {
        n for n, _ in loaded.model.named_parameters() if ".layers.1.mlp." in n or n.startswith("lm_head")
    }


@pytest.mark.parametrize(
    ("wanted", "numbers"),
    [
        ({}, "6|7"),
        ({"count": 3}, "5|6|7"),
        ({"count": -2}, "0|1"),
        ({"count": 2, "spread": True}, "3|7"),
        ({"count": 20}, "0|1|2|3|4|5|6|7"),
    ],
)
def test_which_layers(wanted: dict[str, Any], numbers: str) -> None:
    eight = checkpoint({"model_type": "mistral", "num_hidden_layers": 8})
    assert planned(eight, "full", train_layers=wanted, allow_weights=["."]).preparation.train_only == (
        rf".*\.({numbers})\.",
    )


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"frozen_parts": ["vision"]}, "unknown-part"),
        ({"train_only": ["("]}, "bad-pattern"),
        ({"train_only": [r"norm\.weight"]}, "train-only-matches-nothing"),
        ({"train_only": ["model", "layers.0"]}, "train-only-matches-nothing"),
        ({"train_layers": {"coun": 2}}, "unknown-field"),
        ({"trainable_dtype": "float31"}, "unknown-dtype"),
    ],
)
def test_what_cant_be_is_told(options: dict[str, Any], code: str) -> None:
    eight = checkpoint({"model_type": "mistral", "num_hidden_layers": 8})
    with pytest.raises(loadkit.PlanError) as caught:
        planned(eight, "full", allow_weights=["."], **options)
    assert code in [p.code for p in caught.value.problems]


def test_freezing_beside_an_adapter_has_nothing_to_freeze() -> None:
    with pytest.raises(loadkit.PlanError, match="an adapter trains"):
        planned(checkpoint({"model_type": "mistral"}), "lora", train_only=["lm_head"])


def test_layers_of_a_config_that_doesnt_say_how_many() -> None:
    with pytest.raises(loadkit.PlanError, match="doesn't say how many layers"):
        planned(checkpoint({"model_type": "mistral"}), "full", train_layers={"count": 2})


def test_nothing_that_matches_is_told(tiny: Any) -> None:
    with pytest.raises(loadkit.LoadkitError, match="none of its parameters does"):
        loadkit.load(tiny("mistral"), **FULL, train_only=[".*nowhere"])
