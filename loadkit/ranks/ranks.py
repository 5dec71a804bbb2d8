"""What `load` asks at its steps: nothing of a process on its own, agreement of the processes of a launch."""

from __future__ import annotations

import itertools
import logging
import socket
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import TracebackType
from typing import Any, TypeVar

import msgspec

from loadkit.errors import Finding, RankError
from loadkit.facts.hub.pinned_commits import noting_commits
from loadkit.facts.machine.topology import Topology, read_topology
from loadkit.planning.pipeline import Planned
from loadkit.ranks.agreement import difference, digest_of, passport
from loadkit.ranks.findings import merged
from loadkit.ranks.heartbeat import Stopped
from loadkit.ranks.messages import Company
from loadkit.ranks.random_numbers import random_state, with_random_state
from loadkit.ranks.settings import read_settings
from loadkit.ranks.stores import open_store, prefixed
from loadkit.schema.plans import Plan
from loadkit.schema.request import Progress

__all__ = ["LaunchedRank", "Ranks", "ranks_of_this_launch"]

T = TypeVar("T")

WEIGHTS = "the weights"
"""What is fetched only by those ranks that need it; everything else is fetched by all."""

_loads = itertools.count()
"""The loads of this process, in order: every rank makes the same ones."""

log = logging.getLogger(__name__)


def ranks_of_this_launch(together: bool = True, topology: Topology | None = None) -> Ranks:
    """The processes to load with.

    Parameters:
        together: whether all processes of the launch load; False where this one loads on its own.
        topology: the launch; read from the environment by default.
    """
    topology = topology or read_topology()
    return LaunchedRank(topology) if together and topology.distributed else Ranks()


class Ranks:
    """A process on its own: every step is its own affair. Used as a context around the whole load."""

    def __enter__(self) -> Ranks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return None

    def reporting(self, progress: Progress | None) -> Progress | None:
        """What may be told of the load's progress: rank 0 tells."""
        return progress

    def plan(self, planning: Callable[[], Planned]) -> Planned:
        """Plan; every branch stands for the commit that rank 0 found."""
        return planning()

    def first_on_node(self, what: str, fetching: Callable[[], T]) -> T:
        """Fetch something: one process of each machine first, then the others, who find it there."""
        return fetching()

    def same_random_numbers(self, step: str) -> AbstractContextManager[None]:
        """Draw the same random numbers as rank 0, in one of the load's steps."""
        return nullcontext()

    def finish(self, findings: Sequence[Finding]) -> tuple[Finding, ...]:
        """Wait until all have loaded; what all of them found."""
        return tuple(findings)


class _Arrival(msgspec.Struct, frozen=True):
    digest: str
    host: str
    local_rank: int


class LaunchedRank(Ranks):
    """One process of several that load together.

    Parameters:
        topology: where it is.
    """

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._first_here = 0
        self._fetched: set[str] = set()
        self._quiet: AbstractContextManager[Any] = nullcontext() if topology.rank == 0 else _quiet()

    def __enter__(self) -> Ranks:
        topology, settings = self._topology, read_settings()
        store = open_store(topology, settings, log.warning)
        own = prefixed(f"load {next(_loads)}", store)
        self._company = Company(own, topology.rank, topology.world_size, settings)
        self._quiet.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        company = self._company
        company.rest()
        self._quiet.__exit__(None, None, None)
        failure = company.failure
        stopped = failure is not None and _was_stopped(error)
        if error is not None and not stopped and not isinstance(error, RankError):
            company.fail([company.rank], f"rank {company.rank} failed: {type(error).__name__}: {error}")
        company.leave()
        if failure is not None and stopped:
            raise failure from None

    def reporting(self, progress: Progress | None) -> Progress | None:
        return progress if self._company.rank == 0 else None

    def plan(self, planning: Callable[[], Planned]) -> Planned:
        company = self._company
        if company.rank == 0:
            with noting_commits() as notes:
                planned = planning()
            company.tell("commits", notes)
        else:
            with noting_commits(company.told("commits", 0, dict[str, str])):
                planned = planning()
        self._compare(planned.plan)
        return planned

    def _compare(self, plan: Plan) -> None:
        """Refuse to load where another rank would load something else; find out who shares this machine."""
        own = passport(plan, self._topology)
        company, topology = self._company, self._topology
        here = _Arrival(digest_of(own), socket.gethostname(), topology.local_rank)
        arrived = company.gather("plans", here, _Arrival)
        beside = [rank for rank, other in enumerate(arrived) if other.host == here.host]
        self._first_here = min(beside, key=lambda rank: (arrived[rank].local_rank, rank))
        if len({other.digest for other in arrived}) == 1:
            return
        ranks, message = difference(self._company.gather("passports", own, dict[str, str]))
        raise RankError(ranks, message)

    def first_on_node(self, what: str, fetching: Callable[[], T]) -> T:
        company, first = self._company, self._first_here
        if company.rank != first:
            company.told(f"{what} on {first}", first, bool)
            return fetching()
        fetched = fetching()
        self._fetched.add(what)
        company.tell(f"{what} on {first}", True)
        return fetched

    def _nothing_to_fetch(self) -> None:
        """A rank that needed no weights, because its machine keeps them quantized, lets those go on who do need them."""
        if self._company.rank == self._first_here and WEIGHTS not in self._fetched:
            self._company.tell(f"{WEIGHTS} on {self._first_here}", False)

    def same_random_numbers(self, step: str) -> AbstractContextManager[None]:
        company = self._company
        if step == "phases":
            self._nothing_to_fetch()
        if company.rank == 0:
            company.tell(f"random numbers of {step}", random_state())
            return nullcontext()  # what a process on its own would draw
        return with_random_state(company.told(f"random numbers of {step}", 0, dict[str, str]))

    def finish(self, findings: Sequence[Finding]) -> tuple[Finding, ...]:
        every = self._company.gather("findings", list(findings), list[Finding])
        self._company.rest()
        return merged(every)


def _was_stopped(error: BaseException | None) -> bool:
    """Whether an error comes from having been stopped; a library may have wrapped it."""
    while error is not None and not isinstance(error, Stopped):
        error = error.__cause__ or error.__context__
    return error is not None


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave it to rank 0 to warn and to draw bars."""
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )
    from transformers.utils import logging as theirs

    bars, hub_bars, level = (
        theirs.is_progress_bar_enabled(),
        not are_progress_bars_disabled(),
        theirs.get_verbosity(),
    )
    theirs.disable_progress_bar()
    disable_progress_bars()
    theirs.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        theirs.set_verbosity(level)
        if bars:
            theirs.enable_progress_bar()
        if hub_bars:
            enable_progress_bars()
