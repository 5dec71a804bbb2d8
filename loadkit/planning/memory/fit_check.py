"""Whether what a plan takes fits this machine, before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence

from loadkit.errors import Problem, Severity
from loadkit.facts.context import Context
from loadkit.planning.memory.optimizers import OPTIMIZERS
from loadkit.schema.plans import Memory, Plan, RankMemory
from loadkit.text.units import size

__all__ = ["check_memory"]


def check_memory(context: Context, plan: Plan) -> list[Problem]:
    """Hold the estimate against the memory of the device that the weights go to.

    Returns:
        An error where the model itself doesn't fit, a warning where gradients and optimizer don't fit beside
        it, a note where the optimizer isn't known; nothing with `check_memory=False`.
    """
    return [*_unknown_optimizer(context), *_too_large(context, plan)]


def _unknown_optimizer(context: Context) -> Sequence[Problem]:
    asked = context.request.asked("optim")
    if asked is None or asked.value in OPTIMIZERS:
        return []
    return [
        Problem(
            "memory",
            "loadkit",
            "unknown-optimizer",
            f"{asked.by} named the optimizer {asked.value!r}, whose state loadkit doesn't know: AdamW's is counted",
            f"known are {', '.join(sorted(OPTIMIZERS))}",
            severity="note",
        )
    ]


def _too_large(context: Context, plan: Plan) -> Sequence[Problem]:
    memory = plan.memory
    if memory is None or not memory.room or not context.request.value("check_memory", True):
        return []
    rank = memory.per_rank
    model, total, on = memory.model, memory.total, ""
    spread = "give device_map='auto' to spread it"
    if rank is not None:
        model, total = _needed(memory, rank, context.machine.kind == "cpu")
        on = (
            f" on a node of {rank.processes} processes"
            if context.machine.kind == "cpu"
            else " on each device"
        )
        spread = "shard it with engine='fsdp2' over enough devices"
    if model > memory.room:
        return [_problem("does-not-fit", "error", f"the model takes {size(model)}{on}", spread, memory)]
    if total > memory.room:
        what = f"the model, its gradients and the state of {memory.optim} take {size(total)}{on}"
        return [_problem("training-does-not-fit", "warning", what, "choose an optimizer of 8 bits", memory)]
    if rank is not None and context.machine.memory and rank.host_own > context.machine.memory:
        return [_host(rank, context.machine.memory)]
    return []


def _needed(memory: Memory, rank: RankMemory, on_host: bool) -> tuple[int, int]:
    """Bytes of the model while loading, and of all in training: of a device, or of a node's shared memory."""
    if not on_host:
        return max(rank.loading, rank.weights), rank.total
    own = rank.host_own // rank.processes
    model = max(memory.model - own, 0) + rank.host_own
    return model, model + rank.processes * (rank.gradients + rank.optimizer)


def _host(rank: RankMemory, room: int) -> Problem:
    return Problem(
        "memory",
        "loadkit",
        "host-does-not-fit",
        f"while loading, the {rank.processes} processes of a node take {size(rank.host_own)} of main memory, and it has {size(room)}: "
        f"{rank.how}",
        "load in the dtype that the files have, which needs no copies, start fewer processes a node, or give check_memory=False to "
        "try all the same",
    )


def _problem(code: str, severity: Severity, what: str, remedy: str, memory: Memory) -> Problem:
    quantize = "" if memory.quantized else "quantize it (load_in_4bit=True), "
    return Problem(
        "memory",
        "loadkit",
        code,
        f"{what}, and {memory.where} has {size(memory.room)}",
        f"{quantize}{remedy}, or give check_memory=False to try all the same",
        severity=severity,
    )
