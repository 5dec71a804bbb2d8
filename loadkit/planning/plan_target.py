"""Where a plan is for: this launch on this machine, or machines that are named because one isn't on them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import msgspec

from loadkit.errors import Problem
from loadkit.facts.machine.engines import ENGINES, Engine
from loadkit.facts.machine.machine import Machine
from loadkit.facts.machine.named_machines import NamedAccelerator, named_machine
from loadkit.facts.machine.topology import Topology
from loadkit.hooks.provisions import Provision
from loadkit.planning.build_request import several_plugins
from loadkit.schema.request import Request
from loadkit.text.suggest import did_you_mean

__all__ = ["Target", "find_target"]

_problem = partial(Problem, "topology", "loadkit")


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Where a plan is for.

    Parameters:
        machine: the machine, or one of the equal nodes.
        elsewhere: where, in a few words, if it can't be loaded here; "" for this launch on this machine.
        problems: what is wrong with what was asked for, or with what the launcher set.
    """

    machine: Machine
    topology: Topology
    elsewhere: str = ""
    problems: tuple[Problem, ...] = ()


def find_target(
    request: Request,
    machine: Machine | str | None,
    nodes: int | None,
    engine: str | None,
    topology: Topology | None,
    here: Machine,
    launch: Callable[[], Topology],
    accelerators: Provision[NamedAccelerator],
) -> Target:
    """Decide where a plan is for, by what `make_plan` was given and what the request's options ask for."""
    problems: list[Problem] = []
    if engine is not None and engine not in ENGINES:
        asked = f"engine={engine!r} was asked for, which isn't one{did_you_mean(engine, ENGINES)}"
        problems.append(_problem("unknown-engine", asked, f"the engines are {', '.join(ENGINES)}"))
        engine = None
    if nodes is not None and nodes < 1:
        problems.append(_problem("nodes", f"nodes={nodes} was asked for", "give 1 or more"))
        nodes = None
    known = {name: item for name, (_, item) in accelerators.found.items()}
    named = named_machine(machine, here, known) if isinstance(machine, str) else machine
    if isinstance(named, Problem):
        shared = [
            name for name in accelerators.conflicts if name.split("-")[0].lower() in str(machine).lower()
        ]
        problems += [
            several_plugins("machine", "accelerator", name, accelerators.conflicts) for name in shared
        ]
        problems.append(named)
        named = here
    target = named or here
    imagined = topology is None and (isinstance(machine, str) or nodes is not None)
    if topology is None:
        topology = _imagined(target, nodes or 1, engine) if imagined else launch()
    problems += topology.problems
    topology = _with_engine(topology, engine)
    topology, found = _with_splitting(topology, request)
    problems += found
    elsewhere = ""
    if imagined or (named is not None and named.accelerators != here.accelerators):
        elsewhere = ", ".join(filter(None, (target.describe(), topology.describe())))
    if isinstance(machine, str) and not problems:
        problems.append(
            Problem(
                "machine",
                "loadkit",
                "planned-elsewhere",
                f"this plan is for {elsewhere}, with the packages that are installed here",
                "load it there, where it is planned anew; nothing is loaded with it here",
                severity="note",
            )
        )
    return Target(machine=target, topology=topology, elsewhere=elsewhere, problems=tuple(problems))


def _imagined(machine: Machine, nodes: int, engine: str | None) -> Topology:
    """One process an accelerator where an engine spreads the model or there are several nodes; else one."""
    if engine is None and nodes == 1:
        return Topology()
    each = max(len(machine.accelerators), 1)
    world = nodes * each
    return Topology(
        world_size=world,
        local_world_size=each,
        engine="ddp" if world > 1 else "none",
        read_from={"processes": "given by hand"},
    )


def _with_engine(topology: Topology, engine: str | None) -> Topology:
    if engine is None or engine == topology.engine:
        return topology
    chosen: Engine = next(e for e in ENGINES if e == engine)
    return msgspec.structs.replace(
        topology,
        engine=chosen,
        zero3_alive=topology.zero3_alive if chosen == "zero3" else None,
        read_from={**topology.read_from, "engine": "given by hand"},
    )


def _with_splitting(topology: Topology, request: Request) -> tuple[Topology, list[Problem]]:
    """`tp_plan` or `tp_size` choose tensor parallelism where nobody named an engine, and go with FSDP2."""
    size = request.asked("tp_size")
    asked = size or request.asked("tp_plan")
    if asked is None and topology.engine != "tensor-parallel":
        return topology, []
    given = size.value if size is not None else topology.tp_size
    chosen = given if size is not None or given > 1 else topology.world_size
    if chosen < 1 or topology.world_size % chosen:
        return topology, [_indivisible(chosen, topology.world_size)]
    alone = topology.engine in ("none", "ddp", "tensor-parallel")
    if not alone and topology.engine != "fsdp2":
        return topology, [_not_beside(asked.name if asked else "tp_plan", topology.engine)]
    named = topology.read_from.get("engine", "")
    source = named if asked is None or not alone else f"{asked.name} by {asked.by}"
    split = msgspec.structs.replace(
        topology,
        engine="tensor-parallel" if alone else topology.engine,
        tp_size=chosen,
        read_from={**topology.read_from, **({"engine": source} if source else {})},
    )
    return split, []


def _indivisible(tp_size: int, world_size: int) -> Problem:
    return _problem(
        "tp-size",
        f"tp_size={tp_size} was asked for, and {world_size} processes can't be parted into groups of {tp_size}",
        f"choose a divisor of {world_size}, or launch as many processes as the layers are to be split over",
    )


def _not_beside(name: str, engine: str) -> Problem:
    return _problem(
        "tensor-parallel-beside-engine",
        f"{name} was asked for, and {engine} shares the weights among the processes in another way",
        f"launch without {engine}, or with FSDP2, beside which transformers splits layers; or leave {name} out",
    )
