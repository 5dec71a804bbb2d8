"""Whether what a plan takes fits this machine, told before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence

from loadkit.context import Context
from loadkit.errors import Problem, Severity
from loadkit.memory import OPTIMIZERS
from loadkit.plans import Memory, Plan
from loadkit.units import size

__all__ = ["check_memory"]


def check_memory(context: Context, plan: Plan) -> list[Problem]:
    """Hold the estimate against the memory of the device that the weights go to.

    Returns:
        An error where the model itself doesn't fit, a warning where gradients and optimizer don't fit beside it, a note where the
        optimizer isn't known; nothing with `check_memory=False`.
    """
    return [*_unknown_optimizer(context), *_too_large(context, plan)]


def _unknown_optimizer(context: Context) -> Sequence[Problem]:
    asked = context.request.asked("optim")
    if asked is None or asked.value in OPTIMIZERS:
        return []
    return [
        Problem(
            stage="memory",
            plugin="loadkit",
            code="unknown-optimizer",
            severity="note",
            message=f"{asked.by} named the optimizer {asked.value!r}, whose state loadkit doesn't know: AdamW's is counted",
            remedy=f"known are {', '.join(sorted(OPTIMIZERS))}",
        )
    ]


def _too_large(context: Context, plan: Plan) -> Sequence[Problem]:
    memory = plan.memory
    if memory is None or not memory.room or not context.request.value("check_memory", True):
        return []
    if memory.model > memory.room:
        spread = "give device_map='auto' to spread it"
        return [_problem("does-not-fit", "error", f"the model takes {size(memory.model)}", spread, memory)]
    if memory.total > memory.room:
        what = f"the model, its gradients and the state of {memory.optim} take {size(memory.total)}"
        return [_problem("training-does-not-fit", "warning", what, "choose an optimizer of 8 bits", memory)]
    return []


def _problem(code: str, severity: Severity, what: str, remedy: str, memory: Memory) -> Problem:
    quantize = "" if memory.quantized else "quantize it (load_in_4bit=True), "
    return Problem(
        stage="memory",
        plugin="loadkit",
        code=code,
        severity=severity,
        message=f"{what}, and {memory.where} has {size(memory.room)}",
        remedy=f"{quantize}{remedy}, or give check_memory=False to try all the same",
    )
