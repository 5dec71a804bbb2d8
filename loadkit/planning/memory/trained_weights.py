"""Which of the base's weights train, as far as files tell: their names may leave the base model's out."""

from __future__ import annotations

import re

from loadkit.facts.context import Context
from loadkit.facts.library.towers import is_projector
from loadkit.facts.library.weight_roles import Weight
from loadkit.schema.plans import Plan

__all__ = ["trains"]


def trains(weight: Weight, plan: Plan, context: Context) -> bool:
    """Whether a weight trains in a plan in which the base does."""
    preparation = plan.preparation
    if preparation.frozen_parts:
        towers = context.towers(plan.model_class)
        part = (
            "projector"
            if is_projector(weight.module)
            else "towers"
            if towers.holds(weight.module)
            else "language-model"
        )
        if part in preparation.frozen_parts:
            return False
    names = (weight.name, f"model.{weight.name}")
    return not preparation.train_only or any(
        re.match(pattern, name) for pattern in preparation.train_only for name in names
    )
