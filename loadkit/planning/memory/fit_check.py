"""Whether what a plan takes fits this machine, before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from loadkit.errors import Problem
from loadkit.facts.context import Context
from loadkit.hooks.provisions import Provision
from loadkit.schema.memory import Memory, Optimizer, RankMemory
from loadkit.schema.plans import Plan
from loadkit.text.units import size

__all__ = ["check_memory"]

_problem = partial(Problem, "memory", "loadkit")

ALL_THE_SAME = "give check_memory=False to try all the same"


def check_memory(context: Context, plan: Plan, optimizers: Provision[Optimizer]) -> list[Problem]:
    """Hold the estimate against the memory of the device that the weights go to."""
    return [*_unknown_optimizer(context, optimizers), *_too_large(context, plan)]


def _unknown_optimizer(context: Context, optimizers: Provision[Optimizer]) -> Iterator[Problem]:
    asked = context.request.asked("optim")
    if asked is not None and asked.value in optimizers.conflicts:
        plugins = optimizers.conflicts[asked.value]
        yield _problem(
            "conflict",
            f"{asked.by} named the optimizer {asked.value!r}, which several plugins bring: {', '.join(plugins)}",
            f"leave all but one out, for example LOADKIT_DISABLE={','.join(plugins[1:])}",
        )
    elif asked is not None and asked.value not in optimizers.found:
        yield _problem(
            "unknown-optimizer",
            f"{asked.by} named the optimizer {asked.value!r}, whose state loadkit doesn't know: AdamW's is counted",
            f"known are {', '.join(sorted(optimizers.found))}",
            severity="note",
        )


def _too_large(context: Context, plan: Plan) -> Iterator[Problem]:
    """An error where the model itself doesn't fit, a warning where its gradients and optimizer don't."""
    memory, machine = plan.memory, context.machine
    if memory is None or not memory.room or not context.request.value("check_memory", True):
        return
    rank, on_host = memory.per_rank, machine.kind == "cpu"
    model, total, on = memory.model, memory.total, ""
    remedy = "give device_map='auto' to spread it"
    if rank is not None:
        model, total = _needed(memory, rank, on_host)
        on = f" on a node of {rank.processes} processes" if on_host else " on each device"
        remedy = "shard it with engine='fsdp2' over enough devices"
    there = f"{memory.where} has {size(memory.room)}"
    quantize = "" if memory.quantized else "quantize it (load_in_4bit=True), "
    if model > memory.room:
        yield _problem(
            "does-not-fit",
            f"the model takes {size(model)}{on}, and {there}",
            f"{quantize}{remedy}, or {ALL_THE_SAME}",
        )
    elif total > memory.room:
        yield _problem(
            "training-does-not-fit",
            f"the model, its gradients and the state of {memory.optim} take {size(total)}{on}, and {there}",
            f"{quantize}choose an optimizer of 8 bits, or {ALL_THE_SAME}",
            severity="warning",
        )
    elif rank is not None and machine.memory and rank.host_own > machine.memory:
        yield _problem(
            "host-does-not-fit",
            f"while loading, the {rank.processes} processes of a node take {size(rank.host_own)} of main memory, "
            f"and it has {size(machine.memory)}: {rank.how}",
            "load in the dtype that the files have, which needs no copies, start fewer processes a node, or "
            f"{ALL_THE_SAME}",
        )


def _needed(memory: Memory, rank: RankMemory, on_host: bool) -> tuple[int, int]:
    """Bytes of the model while loading, and of all in training: of a device, or of a node's shared memory."""
    if not on_host:
        return max(rank.loading, rank.weights), rank.total
    own = rank.host_own // rank.processes
    model = max(memory.model - own, 0) + rank.host_own
    return model, model + rank.processes * (rank.gradients + rank.optimizer)
