"""The layers that a new adapter's targets mean, as far as headers and sources tell."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from loadkit import Adapter, Context, Plan

__all__ = ["effective_targets", "targeted_layers"]


def effective_targets(context: Context, plan: Plan, adapter: Adapter) -> Any:
    """The targets that were given, else PEFT's own for the model's type."""
    given = adapter.options.get("target_modules")
    return context.peft_targets(adapter.peft_type, plan.model_class) if given is None else given


def targeted_layers(context: Context, plan: Plan, given: Any) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """The modules with weights of their own that targets name: path, shape and kind."""
    for weight in context.weights(plan.model_class):
        if not weight.name.endswith(".weight"):
            continue
        if given == "all-linear":
            named = weight.kind == "linear"
        elif isinstance(given, str):
            named = _matches(given, weight.module)
        else:
            ends = (
                given if isinstance(given, list | tuple | set) else ()
            )  # another type is a problem of its own
            named = any(weight.module == each or weight.module.endswith(f".{each}") for each in ends)
        if named:
            yield weight.module, weight.shape, weight.kind


def _matches(pattern: str, path: str) -> bool:
    try:
        return re.fullmatch(pattern, path) is not None
    except re.error:
        return False
