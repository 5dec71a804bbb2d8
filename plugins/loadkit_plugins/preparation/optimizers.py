"""What optimizers keep for each value that trains, by transformers' names (`TrainingArguments.optim`)."""

from __future__ import annotations

from collections.abc import Sequence

from loadkit import hookimpl
from loadkit.plugins import Optimizer

__all__ = ["loadkit_optimizers"]

BLOCK = 256
"""Values that share a scale in bitsandbytes' 8-bit optimizers."""


@hookimpl
def loadkit_optimizers() -> Sequence[Optimizer]:
    """Those of torch, Apex and bitsandbytes."""
    return [
        Optimizer(
            names=("adamw_torch", "adamw_torch_fused", "adamw_torch_xla", "adamw_apex_fused"), states=2
        ),
        Optimizer(
            names=("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit", "ademamix_8bit"),
            fixed=2 + 2 * 4 / BLOCK,
            small=8,
        ),
        Optimizer(names=("paged_adamw_32bit", "paged_adamw"), fixed=8),
        Optimizer(names=("lion", "lion_32bit", "paged_lion_32bit", "paged_lion"), fixed=4),
        Optimizer(names=("lion_8bit", "paged_lion_8bit"), fixed=1 + 4 / BLOCK, small=4),
        Optimizer(names=("rmsprop", "adagrad"), states=1),
        Optimizer(names=("sgd",)),
        Optimizer(names=("adafactor",), factored=True),
    ]
