"""PEFT's own targets as its source has them, against what the library itself holds."""

from __future__ import annotations

import ast
from typing import Any

import pytest

from loadkit.facts.library.peft_configs import peft_types
from loadkit.facts.library.peft_targets import peft_default_targets, tables


def test_they_are_peft_s() -> None:
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    held = {str(kind.value): cls for kind, cls in PEFT_TYPE_TO_TUNER_MAPPING.items()}
    compared = 0
    for kind in peft_types():
        own = getattr(held.get(kind), "target_module_mapping", None)
        if own:
            assert peft_default_targets(kind) == own, kind
            compared += 1
    assert compared > 20


def test_feed_forward_layers_have_a_table_of_their_own() -> None:
    from peft.utils import constants

    own = constants.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING
    assert peft_default_targets("IA3", "feedforward_modules") == own
    assert peft_default_targets("LORA", "feedforward_modules") is None


def test_attention_that_is_replaced_is_told_by_model_type() -> None:
    from peft.tuners.adaption_prompt.config import TRANSFORMERS_MODEL_CONFIG

    own = {kind: entry.target_modules for kind, entry in TRANSFORMERS_MODEL_CONFIG.items()}
    assert peft_default_targets("ADAPTION_PROMPT") == own


@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "TRAINABLE_TOKENS", "NO_SUCH_TYPE"])
def test_a_type_without_a_table(kind: str) -> None:
    assert peft_default_targets(kind) is None


@pytest.mark.parametrize(
    ("source", "found"),
    [
        (
            "A = {'x': ['q']}\nB = A.copy()\nB['y'] = ['k']",
            {"A": {"x": ["q"]}, "B": {"x": ["q"], "y": ["k"]}},
        ),
        ("A = {'x': f, **other}\nA['y'] = g()\nC = D.copy()", {"A": {}}),
        ("A = {'x': Made(target_modules='attn', other=f)}", {"A": {"x": "attn"}}),
    ],
)
def test_what_is_read(source: str, found: dict[str, Any]) -> None:
    assert tables(ast.parse(source).body) == found
