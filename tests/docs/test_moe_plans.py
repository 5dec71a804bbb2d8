"""The table of large mixtures of experts, made from headers over holes."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from pathlib import Path
from types import ModuleType

import pytest


def test_the_bytes_of_experts_by_hand(script: Callable[[str], ModuleType], tmp_path: Path) -> None:
    """GPT-OSS-120B: two stacks of 128 experts in each of 36 layers, nf4 without nested scales."""
    plans = script("moe_plans")
    model = next(each for each in plans.MODELS if each.name == "gpt-oss-120b")
    plan = plans.planned(plans.write(model, tmp_path / "model"), "1xH100-80GB", "inference-4bit")
    counts = [2880 * 5760, 2880 * 2880]
    nested = plan.quantization.options["bnb_4bit_use_double_quant"]
    scales = [ceil(n / 64) + ceil(n / 64 / 256) * 4 + 4 if nested else ceil(n / 64) * 4 for n in counts]
    assert plan.memory.quantized == 36 * 128 * sum(n // 2 for n in counts)
    assert plan.memory.constants == 36 * 128 * sum(scales)


@pytest.mark.slow
def test_the_table_is_what_plans_say(script: Callable[[str], ModuleType], tmp_path: Path) -> None:
    plans = script("moe_plans")
    begin, end = plans.MARKS
    held = plans.PAGE.read_text(encoding="utf-8").partition(begin)[2].partition(end)[0].strip()
    assert held.splitlines() == list(plans.rows(tmp_path)), "run python docs/moe_plans.py"
