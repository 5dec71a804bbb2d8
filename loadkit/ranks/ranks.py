"""What `load` asks at its steps: nothing of a process on its own, agreement of the processes of a launch."""

from __future__ import annotations

import itertools
import logging
import socket
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TypeVar

import msgspec

from loadkit.errors import Finding, LoadkitError, RankError
from loadkit.facts.hub.pinned_commits import noting_commits
from loadkit.facts.machine.topology import Topology, read_topology
from loadkit.planning.pipeline import Planned
from loadkit.ranks.agreement import difference, digest_of, to_agree_on
from loadkit.ranks.findings import merged
from loadkit.ranks.heartbeat import Stopped
from loadkit.ranks.messages import Messages
from loadkit.ranks.random_numbers import random_state, with_random_state
from loadkit.ranks.settings import read_settings
from loadkit.ranks.stores import open_store, prefixed
from loadkit.schema.plans import Plan
from loadkit.schema.request import Progress

__all__ = ["LaunchedRank", "Ranks", "ranks_of_this_launch"]

T = TypeVar("T")

WEIGHTS = "the weights"
"""What only those ranks fetch that need it; everything else is fetched by all."""

_loads = itertools.count()
"""The loads of this process, in order: every rank makes the same ones."""

log = logging.getLogger(__name__)


def ranks_of_this_launch(together: bool = True, topology: Topology | None = None) -> Ranks:
    """The processes to load with: this one alone, or `together` with the others of the launch."""
    topology = topology or read_topology()
    return LaunchedRank(topology) if together and topology.distributed else Ranks()


class Ranks:
    """A process on its own: every step is its own affair."""

    def together(self, loading: Callable[[], T]) -> T:
        """Load: every step of it is done by the methods below, all of them within."""
        return loading()

    def reporting(self, progress: Progress | None) -> Progress | None:
        """Where to report progress: rank 0 does."""
        return progress

    def plan(self, planning: Callable[[], Planned]) -> Planned:
        """Plan; every branch stands for the commit that rank 0 found."""
        return planning()

    def first_on_node(self, what: str, fetching: Callable[[], T]) -> T:
        """Fetch something: one process of each machine first, then the others, which find it there."""
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
    """One process of several that load together."""

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._first_here = 0
        self._fetched: set[str] = set()
        self._met: Messages | None = None
        self._quieted = ExitStack()

    @property
    def _messages(self) -> Messages:
        assert self._met is not None
        return self._met

    def together(self, loading: Callable[[], T]) -> T:
        try:
            return self._joined(loading)
        except Stopped as stopped:
            # It was on its way while this rank was joining or leaving; the next would come seconds later.
            self._leave(stopped)
            raise

    def _joined(self, loading: Callable[[], T]) -> T:
        try:
            self._join()
            loaded = loading()
        except BaseException as error:
            self._leave(error)
            raise
        self._leave(None)
        return loaded

    def _join(self) -> None:
        """Meet the others, and be watched, before anything that takes long, such as an import."""
        topology, settings = self._topology, read_settings()
        own = prefixed(f"load {next(_loads)}", open_store(topology, settings, log.warning))
        self._met = Messages(own, topology.rank, topology.world_size, settings)
        self._met.interrupt()
        if topology.rank:
            self._quieted.enter_context(_quiet())

    def _leave(self, error: BaseException | None) -> None:
        """Tell the others of an error, or raise theirs. A second call does what is left of the first."""
        messages = self._met
        if messages is None:
            return
        messages.stop_heartbeat()
        self._quieted.close()
        failure = messages.failure
        stopped = failure is not None and _was_stopped(error)
        if error is not None and not stopped and not isinstance(error, RankError):
            messages.fail([messages.rank], f"rank {messages.rank} failed: {type(error).__name__}: {error}")
        messages.close()
        if failure is not None and stopped:
            raise failure from None
        if failure is not None and isinstance(error, Exception) and not isinstance(error, LoadkitError):
            raise failure from error  # what a library made of having been stopped

    def reporting(self, progress: Progress | None) -> Progress | None:
        return progress if self._topology.rank == 0 else None

    def plan(self, planning: Callable[[], Planned]) -> Planned:
        messages = self._messages
        if messages.rank == 0:
            with noting_commits() as notes:
                planned = planning()
            messages.broadcast("commits", notes)
        else:
            with noting_commits(messages.receive("commits", 0, dict[str, str])):
                planned = planning()
        self._compare(planned.plan)
        return planned

    def _compare(self, plan: Plan) -> None:
        """Refuse to load where another rank would load something else; find out who shares this machine."""
        own = to_agree_on(plan, self._topology)
        here = _Arrival(digest_of(own), socket.gethostname(), self._topology.local_rank)
        arrived = self._messages.gather("plans", here, _Arrival)
        beside = [rank for rank, other in enumerate(arrived) if other.host == here.host]
        self._first_here = min(beside, key=lambda rank: (arrived[rank].local_rank, rank))
        if len({other.digest for other in arrived}) == 1:
            return
        ranks, message = difference(self._messages.gather("differences", own, dict[str, str]))
        raise RankError(ranks, message)

    def first_on_node(self, what: str, fetching: Callable[[], T]) -> T:
        messages, first = self._messages, self._first_here
        if messages.rank != first:
            messages.receive(f"{what} on {first}", first, bool)
            return fetching()
        fetched = fetching()
        self._fetched.add(what)
        messages.broadcast(f"{what} on {first}", True)
        return fetched

    def _nothing_to_fetch(self) -> None:
        """Let those go on that need the weights, where this rank needed none: they are kept quantized."""
        if self._messages.rank == self._first_here and WEIGHTS not in self._fetched:
            self._messages.broadcast(f"{WEIGHTS} on {self._first_here}", False)

    def same_random_numbers(self, step: str) -> AbstractContextManager[None]:
        messages = self._messages
        if step == "phases":
            self._nothing_to_fetch()
        if messages.rank == 0:
            messages.broadcast(f"random numbers of {step}", random_state())
            return nullcontext()  # what a process on its own would draw
        return with_random_state(messages.receive(f"random numbers of {step}", 0, dict[str, str]))

    def finish(self, findings: Sequence[Finding]) -> tuple[Finding, ...]:
        every = self._messages.gather("findings", list(findings), list[Finding])
        self._messages.stop_heartbeat()
        return merged(every)


def _was_stopped(error: BaseException | None) -> bool:
    """Whether an error comes from having been stopped; a library may have wrapped it."""
    while error is not None and not isinstance(error, Stopped):
        error = error.__cause__ or error.__context__
    return error is not None


@contextmanager
def _quiet() -> Iterator[None]:
    """Neither warn nor draw bars: rank 0 does."""
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )
    from transformers.utils import logging as theirs

    bars, hub_bars = theirs.is_progress_bar_enabled(), not are_progress_bars_disabled()
    level = theirs.get_verbosity()
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
