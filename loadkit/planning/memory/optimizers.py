"""The bytes of an optimizer's state, by what the plugins say that each keeps."""

from __future__ import annotations

import math
from collections.abc import Sequence

from loadkit.facts.library.weight_roles import Weight
from loadkit.schema.memory import Optimizer

__all__ = ["ADAMW", "optimizer_bytes"]

ADAMW = Optimizer(names=("adamw_torch",), states=2)
"""What is counted for an optimizer of which nobody knows what it keeps."""

PACKED_FROM = 4096
"""Optimizers of 8 bits keep tensors of fewer values in float32."""


def optimizer_bytes(trained: Sequence[Weight], rule: Optimizer) -> int:
    """Bytes of an optimizer's state after its first step."""
    total = 0.0
    for weight in trained:
        if rule.factored:
            matrix, shape = len(weight.shape) > 1, weight.shape
            total += 4 * (sum(shape[-2:]) * math.prod(shape[:-2]) if matrix else weight.count)
        elif rule.small is not None and weight.count < PACKED_FROM:
            total += rule.small * weight.count
        else:
            total += rule.states * weight.nbytes + rule.fixed * weight.count
    return round(total)
