"""What launchers set in each process's environment: its number, and how many there are."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial

import msgspec

from loadkit.errors import Problem

__all__ = ["Processes", "read_processes"]

_problem = partial(Problem, "topology", "loadkit")


class Launcher(msgspec.Struct, frozen=True, kw_only=True):
    """The names of a launcher's variables, of which the first that is set counts.

    It is at work where `world` is set; without the variable `needs` that is a job's setting, and no launch.
    """

    name: str
    world: tuple[str, ...]
    rank: tuple[str, ...]
    local_rank: tuple[str, ...]
    local_world: tuple[str, ...]
    node: tuple[str, ...] = ()
    needs: str = ""


TORCHRUN = Launcher(
    name="torchrun",  # accelerate launch sets the same ones; DeepSpeed's launcher says LOCAL_SIZE
    world=("WORLD_SIZE",),
    rank=("RANK",),
    local_rank=("LOCAL_RANK",),
    local_world=("LOCAL_WORLD_SIZE", "LOCAL_SIZE"),
    node=("GROUP_RANK", "CROSS_RANK"),
)

LAUNCHERS: tuple[Launcher, ...] = (
    TORCHRUN,
    Launcher(
        name="Open MPI",
        world=("OMPI_COMM_WORLD_SIZE",),
        rank=("OMPI_COMM_WORLD_RANK",),
        local_rank=("OMPI_COMM_WORLD_LOCAL_RANK",),
        local_world=("OMPI_COMM_WORLD_LOCAL_SIZE",),
    ),
    Launcher(
        name="MVAPICH",
        world=("MV2_COMM_WORLD_SIZE",),
        rank=("MV2_COMM_WORLD_RANK",),
        local_rank=("MV2_COMM_WORLD_LOCAL_RANK",),
        local_world=("MV2_COMM_WORLD_LOCAL_SIZE",),
    ),
    Launcher(
        name="SLURM",
        world=("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"),
        rank=("SLURM_PROCID",),
        local_rank=("SLURM_LOCALID",),
        local_world=("SLURM_STEP_TASKS_PER_NODE", "SLURM_NTASKS_PER_NODE"),
        node=("SLURM_NODEID",),
        needs="SLURM_STEP_ID",  # a batch script has the job's variables, and srun alone starts several processes
    ),
    Launcher(
        name="MPI",
        world=("PMI_SIZE",),
        rank=("PMI_RANK",),
        local_rank=("MPI_LOCALRANKID",),
        local_world=("MPI_LOCALNRANKS",),
    ),
)
"""In the order in which they count: torchrun may run inside a SLURM or MPI job, once a node."""

REMEDY = (
    "start the processes with torchrun or accelerate launch, which set it; for a single process, unset {}"
)


class Processes(msgspec.Struct, frozen=True, kw_only=True):
    """What a launcher says of the processes, in the words of `Topology`.

    `source` is the launcher with the variables that were read; "" where none is at work.
    """

    world_size: int = 1
    rank: int = 0
    local_rank: int = 0
    local_world_size: int = 1
    node_rank: int = 0
    source: str = ""
    problems: tuple[Problem, ...] = ()


def read_processes(env: Mapping[str, str]) -> Processes:
    """Read the first launcher at work; a single process, with problems, where its numbers can't be right."""
    launchers = [one for one in LAUNCHERS if _set(env, one.world) and (not one.needs or env.get(one.needs))]
    if not launchers:
        return _stray(env)
    launcher = launchers[0]
    read = _Numbers(env)
    world = read.number(launcher.world) or 0
    rank = read.number(launcher.rank)
    local_rank = read.number(launcher.local_rank)
    node = read.number(launcher.node)
    local_world = read.per_node(launcher.local_world, node or 0)
    problems = read.problems or _missing(launcher, world, rank, local_rank, local_world)
    if problems:
        return Processes(problems=tuple(problems))
    rank = rank or 0
    if world == 1 and rank == 0:
        return Processes()
    assumed = "" if local_world is not None else f"; {launcher.local_world[0]} isn't set: one node is assumed"
    if local_rank is None:
        local_rank = rank % max(local_world or 1, 1)
    if local_world is None:
        local_world = world
    problems = _ranges(launcher, world, rank, local_rank, local_world) + _disagreeing(env, launchers, world)
    if problems:
        return Processes(problems=tuple(problems))
    return Processes(
        world_size=world,
        rank=rank,
        local_rank=local_rank,
        local_world_size=local_world,
        node_rank=rank // local_world if node is None else node,
        source=f"{launcher.name}: {', '.join(read.names)}{assumed}",
    )


class _Numbers:
    """Reads numbers, and keeps the names they were read by, and what isn't one."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = env
        self.names: list[str] = []
        self.problems: list[Problem] = []

    def number(self, names: Sequence[str]) -> int | None:
        name = _set(self._env, names)
        if not name:
            return None
        text = self._env[name].strip()
        if not text.isdigit():
            message = f"the environment has {name}={text!r}, which isn't a number of 0 or more"
            self.problems.append(_problem("launch-variable", message, REMEDY.format(name)))
            return None
        self.names.append(name)
        return int(text)

    def per_node(self, names: Sequence[str], node: int) -> int | None:
        """A number a node, which SLURM writes as "8", "8(x2)" or "8(x2),4"."""
        name = _set(self._env, names)
        parts = re.findall(r"(\d+)(?:\(x(\d+)\))?", self._env[name]) if name else []
        if not parts or self._env[name].strip().isdigit():
            return self.number(names)
        self.names.append(name)
        counts = [int(count) for count, times in parts for _ in range(int(times or 1))]
        return counts[min(node, len(counts) - 1)]


def _set(env: Mapping[str, str], names: Sequence[str]) -> str:
    """The first of the names that is set and not empty; "" where none is."""
    return next((name for name in names if env.get(name, "").strip()), "")


def _stray(env: Mapping[str, str]) -> Processes:
    """Without a number of processes, a rank above 0 is a launch of which a part is missing."""
    for name in ("RANK", "LOCAL_RANK"):
        text = env.get(name, "").strip()
        if text.isdigit() and int(text) > 0:
            message = f"the environment has {name}={text}, and WORLD_SIZE isn't set: how many processes there are is unknown"
            return Processes(problems=(_problem("launch-incomplete", message, REMEDY.format(name)),))
    return Processes()


def _missing(
    launcher: Launcher, world: int, rank: int | None, local_rank: int | None, local_world: int | None
) -> list[Problem]:
    said = f"{launcher.name}'s {launcher.world[0]} says that there are"
    remedy = REMEDY.format(launcher.world[0])
    if not world:
        return [_problem("rank-out-of-range", f"{said} no processes", remedy)]
    absent = [] if rank is not None else [launcher.rank[0]]
    if local_rank is None and local_world is None:
        absent.append(launcher.local_rank[0])
    if world == 1 or not absent:
        return []
    unset = f"{' and '.join(absent)} {'is' if len(absent) == 1 else 'are'}n't set"
    unknown = "which of them this is, and which device is its own, is unknown"
    return [_problem("launch-incomplete", f"{said} {world} processes, and {unset}: {unknown}", remedy)]


def _ranges(launcher: Launcher, world: int, rank: int, local_rank: int, local_world: int) -> list[Problem]:
    pairs = (
        (launcher.rank[0], rank, launcher.world[0], world),
        (launcher.local_rank[0], local_rank, launcher.local_world[0], local_world),
        (launcher.local_world[0], local_world - 1, launcher.world[0], world),
    )
    wrong = [
        f"{name}={value if name != launcher.local_world[0] else local_world} doesn't fit {limit}={most}"
        for name, value, limit, most in pairs
        if value >= most
    ]
    message = f"{launcher.name}'s variables contradict each other: {'; '.join(wrong)}"
    remedy = "ranks count from 0 to one below the number of processes; " + REMEDY.format("them")
    return [_problem("rank-out-of-range", message, remedy)] if wrong else []


def _disagreeing(env: Mapping[str, str], launchers: Sequence[Launcher], world: int) -> list[Problem]:
    """WORLD_SIZE set by hand under another launcher; torchrun itself may well run inside one, once a node."""
    if launchers[0] is not TORCHRUN or env.get("TORCHELASTIC_RUN_ID"):
        return []
    for other in launchers[1:]:
        found = _Numbers(env).number(other.world)
        if found is not None and found > 1 and found != world:
            theirs = f"{other.name}'s {_set(env, other.world)} says {found}"
            message = f"WORLD_SIZE says {world} processes, and {theirs}"
            remedy = "unset WORLD_SIZE and RANK, or set them to the launcher's own numbers in each process"
            return [_problem("launchers-disagree", message, remedy)]
    return []
