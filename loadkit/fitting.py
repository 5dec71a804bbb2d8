"""Whether what a plan takes fits this machine, told before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence

from loadkit.context import Context
from loadkit.errors import Problem
from loadkit.memory import OPTIMIZERS
from loadkit.plans import Memory, Plan
from loadkit.units import size

__all__ = ["check_memory"]

SPREADING = ("auto", "balanced", "balanced_low_0", "sequential")
"""Device maps that accelerate fills device after device."""


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
    memory, (where, room) = plan.memory, _room(context, plan)
    if memory is None or not room or not context.request.value("check_memory", True):
        return []
    if memory.model > room:
        return [
            _problem("does-not-fit", "error", f"the model takes {size(memory.model)}", where, room, memory)
        ]
    if memory.total > room:
        what = f"the model, its gradients and the state of {memory.optim} take {size(memory.total)}"
        return [_problem("training-does-not-fit", "warning", what, where, room, memory)]
    return []


def _room(context: Context, plan: Plan) -> tuple[str, int]:
    """Where the weights go, and the bytes that are there; 0 where that isn't known or an engine spreads them."""
    machine, device_map = context.machine, plan.placement.device_map
    accelerators = [a for a in machine.accelerators if a.memory]
    if context.topology.engine_places or device_map is None or plan.placement.max_memory:
        return "", 0
    if isinstance(device_map, str) and device_map in SPREADING:
        return "this machine", machine.memory + sum(a.memory for a in accelerators)
    devices = {device_map} if isinstance(device_map, str) else set(device_map.values())
    if devices == {"cpu"} or (machine.kind == "mps" and len(devices) == 1):
        return "this machine", machine.memory
    if len(devices) == 1 and accelerators:
        device = str(devices.pop()).removeprefix("cuda:").removeprefix("cuda") or "0"
        index = int(device) if device.isdigit() else 0
        if index < len(accelerators):
            return accelerators[index].name, accelerators[index].memory
    return "", 0


def _problem(code: str, severity: str, what: str, where: str, room: int, memory: Memory) -> Problem:
    smaller = [] if memory.quantized else ["quantize it (load_in_4bit=True)"]
    smaller += (
        ["give device_map='auto' to spread it"]
        if code == "does-not-fit"
        else ["choose an optimizer of 8 bits"]
    )
    return Problem(
        stage="memory",
        plugin="loadkit",
        code=code,
        severity="error" if severity == "error" else "warning",
        message=f"{what}, and {where} has {size(room)}",
        remedy=f"{', '.join(smaller)}, or give check_memory=False to try all the same",
    )
