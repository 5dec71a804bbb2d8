"""What an optimizer keeps for each value that trains."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec

from loadkit.facts.library.weight_roles import Weight

__all__ = ["OPTIMIZERS", "Optimizer", "optimizer_bytes"]


class Optimizer(msgspec.Struct, frozen=True, kw_only=True):
    """What an optimizer keeps for each value that trains.

    Parameters:
        states: how many values in the parameter's own dtype.
        fixed: bytes, whatever the dtype.
        small: bytes for values of tensors too small to be packed; None where none is packed.
        factored: whether a matrix takes a row and a column in float32 only.
    """

    states: int = 0
    fixed: float = 0.0
    small: float | None = None
    factored: bool = False


PACKED_FROM = 4096
"""bitsandbytes' optimizers keep smaller tensors in float32 (`min_8bit_size`)."""

BLOCK = 256
"""Values that share a scale in bitsandbytes' 8-bit optimizers."""

_ADAM_8BIT = Optimizer(fixed=2 + 2 * 4 / BLOCK, small=8)
OPTIMIZERS: Mapping[str, Optimizer] = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adamw_torch_xla", "adamw_apex_fused"), Optimizer(states=2)),
    **dict.fromkeys(("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit", "ademamix_8bit"), _ADAM_8BIT),
    **dict.fromkeys(("paged_adamw_32bit", "paged_adamw"), Optimizer(fixed=8)),
    **dict.fromkeys(("lion", "lion_32bit", "paged_lion_32bit", "paged_lion"), Optimizer(fixed=4)),
    **dict.fromkeys(("lion_8bit", "paged_lion_8bit"), Optimizer(fixed=1 + 4 / BLOCK, small=4)),
    "rmsprop": Optimizer(states=1),
    "adagrad": Optimizer(states=1),
    "sgd": Optimizer(),
    "adafactor": Optimizer(factored=True),
}  # fmt: skip
"""transformers' names of optimizers (`TrainingArguments.optim`) to what they keep."""


def optimizer_bytes(trained: Sequence[Weight], name: str) -> int:
    """Bytes of an optimizer's state after its first step; one that isn't in `OPTIMIZERS` counts as AdamW."""
    rule = OPTIMIZERS.get(name, OPTIMIZERS["adamw_torch"])
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
