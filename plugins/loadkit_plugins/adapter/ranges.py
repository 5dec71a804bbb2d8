"""Whether the numbers in a new adapter's fields are such as they can be."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from loadkit import Adapter, Context, Problem

__all__ = ["check_ranges"]

_problem = partial(Problem, "adapter", "adapter")

RANKS = ("r", "init_r", "target_r")
AVERAGES = ("beta1", "beta2")
"""AdaLoRA's moving averages, which PEFT asserts without a word."""

BLOCKS = ("OFT", "BOFT")
"""PEFT's types whose rank of 0 means that the size of the blocks is given instead."""

COUNTED = re.compile(r"\bint\b")
SIGNED = re.compile(r"alpha|layers_to_transform|token_indices")
"""Whole numbers that don't count or measure anything, or have a check of their own."""


SPREADS = ("_std", "_bound")
DIVIDING = ("n_splits", "vector_length", "xlora_depth")
"""Counts of which there is at least one (PEFT 0.21)."""


def check_ranges(context: Context, adapter: Adapter, said: Callable[[str], str]) -> Iterator[Problem]:
    """Every field whose number, or one of whose numbers, can't be.

    Parameters:
        said: a field to the words for who gave it, and what.
    """
    for name, value in adapter.options.items():
        for number in _numbers(value):
            if found := _fault(context, adapter, name, number):
                fault, fix = found
                yield _problem("bad-field", f"{said(name)}: {fault}", fix)
                break


def _fault(context: Context, adapter: Adapter, name: str, number: float) -> tuple[str, str] | None:
    """What is wrong with a number, and what to do; None for nothing."""
    if not math.isfinite(number):
        return "isn't a finite number", "give a number"
    if (name in RANKS or name == "rank_pattern") and number < (0 if adapter.peft_type in BLOCKS else 1):
        return "a rank is 1 or more", "give 8, 16 or 64; adapter=False loads without an adapter"
    if name.endswith("dropout") and not 0 <= number < 1:
        return "a dropout is 0 or more, and less than 1", "give 0.0, 0.05 or 0.1"
    if name in AVERAGES and not 0 < number < 1:
        return "an average weighs its past by more than 0, and less than 1", "give 0.85"
    if name in ("lora_alpha", "alpha_pattern") and number == 0:
        return "with a scale of 0 the adapter does nothing", "give 16 or 32"
    if name.endswith(SPREADS) and number < 0:
        return "a deviation or a bound isn't negative", "give a positive number"
    if name in DIVIDING and number == 0:
        return "a width is divided by it", "give 1 or more"
    facts = context.peft_fields(adapter.peft_type).get(name)
    if facts is None or number >= 0 or not COUNTED.search(facts.annotation) or SIGNED.search(name):
        return None
    if isinstance(facts.default, int) and facts.default < 0:
        return None  # by default it stands for something
    return (
        "a count, a size or a seed isn't negative",
        f"give a positive number; {name} is {facts.default!r} by default",
    )


def _numbers(value: Any) -> Iterator[float]:
    match value:
        case bool():
            return
        case int() | float():
            yield value
        case dict():
            for each in value.values():
                yield from _numbers(each)
        case list() | tuple():
            for each in value:
                yield from _numbers(each)
