"""How many processes load at once, and who places and shares the weights."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

import msgspec

from loadkit.errors import Problem
from loadkit.facts.machine.engines import Engine, read_engine
from loadkit.facts.machine.launchers import read_processes

__all__ = ["Topology", "read_topology"]


class Topology(msgspec.Struct, frozen=True, kw_only=True):
    """The processes of one launch.

    Parameters:
        world_size: how many processes there are on all nodes.
        rank: this one's number among all.
        local_rank: this one's number on its node; it names the accelerator, the global rank doesn't.
        local_world_size: how many processes this node has.
        node_rank: this node's number.
        engine: what spreads the model over them.
        tp_size: how many processes share one copy of the layers that tensor parallelism splits; 1 without it.
        zero3_alive: under ZeRO-3, whether a DeepSpeed config is alive for transformers to find; None where
            that can't be known (the launch was given by hand).
        reads_once: whether one rank's weights are handed to all others (accelerate's
            `cpu_ram_efficient_loading`).
        checkpoints_activations: whether the engine itself recomputes activations (accelerate's
            `activation_checkpointing`).
        read_from: what was read from where: "processes" and "engine" to a few words.
        problems: what is wrong with what the launcher set; the fields then are those of a single process.
    """

    world_size: int = 1
    rank: int = 0
    local_rank: int = 0
    local_world_size: int = 1
    node_rank: int = 0
    engine: Engine = "none"
    tp_size: int = 1
    zero3_alive: bool | None = None
    reads_once: bool = False
    checkpoints_activations: bool = False
    read_from: dict[str, str] = {}
    problems: tuple[Problem, ...] = ()

    @property
    def distributed(self) -> bool:
        """Whether more than one process was launched."""
        return self.world_size > 1

    @property
    def nodes(self) -> int:
        """How many machines there are, where all have as many processes as this one."""
        return -(-self.world_size // max(self.local_world_size, 1))

    @property
    def engine_places(self) -> bool:
        """Whether the engine shards the weights itself, so that no device map may be given."""
        return self.shards_parameters or self.splits_layers

    @property
    def shards_parameters(self) -> bool:
        """Whether each process keeps a part of every parameter, and gathers the rest when it is needed."""
        return self.engine in ("fsdp", "fsdp2", "zero3")

    @property
    def splits_layers(self) -> bool:
        """Whether transformers splits layers over processes (tensor parallelism), alone or beside FSDP2."""
        return self.engine == "tensor-parallel" or self.tp_size > 1

    def describe(self) -> str:
        """One line, equal on all ranks: "16 processes on 2 nodes, fsdp2"; "" for one process alone."""
        if not self.distributed and self.engine == "none":
            return ""
        nodes = f" on {self.nodes} nodes" if self.nodes > 1 else ""
        many = "es" if self.world_size != 1 else ""
        split = f", layers split over {self.tp_size}" if self.splits_layers else ""
        source = f" ({self.read_from['engine']})" if "engine" in self.read_from else ""
        return f"{self.world_size} process{many}{nodes}, {self.engine}{source}{split}"


def read_topology(
    environ: Mapping[str, str] | None = None, modules: Mapping[str, Any] | None = None
) -> Topology:
    """Read what launchers set in the environment, and what engines that are set up already say of themselves.

    Nothing is imported for it: accelerate and transformers have objects only where they were imported.

    Parameters:
        environ: the environment; the process's own by default.
        modules: imported modules by name; `sys.modules` by default.

    Returns:
        The topology; a single process where no launcher is seen, or, with problems, none that can be right.
    """
    env = os.environ if environ is None else environ
    processes = read_processes(env)
    engine = read_engine(env, sys.modules if modules is None else modules, processes.world_size)
    if processes.problems or engine.problems:
        return Topology(problems=(*processes.problems, *engine.problems))
    sources = {"processes": processes.source, "engine": engine.source}
    return Topology(
        world_size=processes.world_size,
        rank=processes.rank,
        local_rank=processes.local_rank,
        local_world_size=processes.local_world_size,
        node_rank=processes.node_rank,
        engine=engine.engine,
        tp_size=engine.tp_size,
        zero3_alive=engine.zero3_alive,
        reads_once=engine.reads_once,
        checkpoints_activations=engine.checkpoints_activations,
        read_from={what: source for what, source in sources.items() if source},
    )
