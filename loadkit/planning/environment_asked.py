"""The environment's part of a plan's ledger: the variables that changed something of it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from loadkit.facts.context import Context
from loadkit.facts.machine.topology import Topology
from loadkit.request.environment import variables_set
from loadkit.schema.ledger import Requested
from loadkit.schema.plans import Plan

__all__ = ["BESIDE", "environment_asked", "launch_variables"]

BESIDE: Mapping[str, tuple[str, ...]] = {
    "zero": (
        "ACCELERATE_USE_DEEPSPEED",
        "ACCELERATE_DEEPSPEED_CONFIG_FILE",
        "ACCELERATE_DEEPSPEED_ZERO_STAGE",
    ),
    "split": ("ACCELERATE_USE_PARALLELISM_CONFIG", "PARALLELISM_CONFIG_TP_SIZE"),
    "reads once": ("FSDP_CPU_RAM_EFFICIENT_LOADING",),
    "checkpoints": ("FSDP_ACTIVATION_CHECKPOINTING",),
}
"""What accelerate's launcher sets beside the variables that the topology names, by what it is for."""

MEETING = ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_USE_AGENT_STORE")
"""Where the processes of a launch meet."""


def environment_asked(env: Mapping[str, str], plan: Plan, context: Context) -> tuple[Requested, ...]:
    """Every variable that is set and matters for this plan, and what became of it.

    Parameters:
        env: the environment.
        plan: the plan.
        context: the facts that it was made from.
    """
    adapters = plan.adapters.members if plan.adapters is not None else ()
    commits = (plan.checkpoint.commit, plan.processing.revision, *(each.revision for each in adapters))
    cache_dir = plan.request.asked("cache_dir")
    return variables_set(
        env,
        hub=any(commits),
        accelerators=bool(context.machine.accelerators) and not plan.elsewhere,
        launch=launch_variables(context.topology),
        cache_dir_by="" if cache_dir is None else cache_dir.by,
    )


def launch_variables(topology: Topology) -> dict[str, str]:
    """The variables of launchers that this topology was read from, to the room that took them."""
    said = " ".join(topology.read_from.values())
    names = [*re.findall(r"\b[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+\b|\bRANK\b", said)]
    if "accelerate launch" in topology.read_from.get("engine", ""):
        read = {
            "zero": topology.engine.startswith("zero"),
            "split": topology.tp_size > 1,
            "reads once": topology.reads_once,
            "checkpoints": topology.checkpoints_activations,
        }
        names += [name for what, there in read.items() if there for name in BESIDE[what]]
    meeting = (
        MEETING if topology.distributed and topology.read_from.get("processes") != "given by hand" else ()
    )
    return {**dict.fromkeys(names, "topology"), **dict.fromkeys(meeting, "ranks")}
