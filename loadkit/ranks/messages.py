"""What the processes of a launch tell each other during one load, with failures and timeouts."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import TypeVar

import msgspec

from loadkit.errors import RankError
from loadkit.ranks.heartbeat import FAILED, Failure, Watch
from loadkit.ranks.settings import Settings
from loadkit.ranks.stores import Store

__all__ = ["Company"]

T = TypeVar("T")
TELL = 30.0
"""Seconds of waiting after which it is told whom for."""

FIRST, LONGEST = 0.005, 0.2
"""Seconds between two looks: of the first, and at most."""

log = logging.getLogger(__name__)


class Company:
    """The ranks of one load. Every rank calls the same methods in the same order.

    Parameters:
        store: the store, with a prefix for this load.
        rank: this rank.
        size: how many there are.
        settings: how long to wait.
    """

    def __init__(self, store: Store, rank: int, size: int, settings: Settings) -> None:
        self.rank = rank
        self.size = size
        self._settings = settings
        self._store = store
        self._store.set_timeout(timedelta(seconds=settings.silence))
        self._watch = Watch(store, rank, size, settings)
        self._failed = False

    def gather(self, what: str, value: T, kind: type[T]) -> list[T]:
        """Everybody's value, by rank; returns when all have given theirs.

        Parameters:
            what: the step, in words that an error can name.
            value: this rank's.
            kind: its type, as msgspec knows it.

        Raises:
            RankError: another rank failed, is gone, or doesn't come in time.
        """
        self._set(f"{what}/{self.rank}", msgspec.json.encode(value))
        if self.rank == 0:
            keys = [f"{what}/{rank}" for rank in range(self.size)]
            self._wait(what, dict(enumerate(keys)))
            together = [msgspec.json.decode(self._get(key), type=kind) for key in keys]
            self._set(f"{what}/all", msgspec.json.encode(together))
            return together
        self._wait(what, {0: f"{what}/all"})
        return msgspec.json.decode(self._get(f"{what}/all"), type=list[kind])  # type: ignore[valid-type]

    def tell(self, what: str, value: T) -> None:
        """Tell the others something that they wait for with `told`."""
        self._set(f"{what}/told", msgspec.json.encode(value))

    def told(self, what: str, by: int, kind: type[T]) -> T:
        """What another rank tells; waits for it.

        Raises:
            RankError: as `gather`.
        """
        self._wait(what, {by: f"{what}/told"})
        return msgspec.json.decode(self._get(f"{what}/told"), type=kind)

    def fail(self, ranks: Sequence[int], message: str) -> None:
        """Tell all ranks to stop, unless they have been told already."""
        self._failed = True
        failure = Failure(ranks=tuple(ranks), message=message)
        self._last_words(lambda: self._store.compare_set(FAILED, "", msgspec.json.encode(failure).decode()))

    @property
    def failure(self) -> RankError | None:
        """Why this rank has to stop."""
        failure = self._watch.failure
        return None if failure is None else _error(failure)

    def rest(self) -> None:
        """Give no more signs of life, and be stopped by nobody any more: this rank has loaded, or failed."""
        self._watch.end()

    def leave(self) -> None:
        """Part. Rank 0, which may keep the store, goes last; so does one that fails, since its launcher then ends the others."""
        self._last_words(lambda: self._store.set(f"left/{self.rank}", ""))
        if self.rank == 0 or self._failed:
            self._last_words(self._until_left)

    def _last_words(self, telling: Callable[[], object]) -> None:
        """Tell something, unless the store is gone, and with it whoever could be told; torch prints a stack at each attempt."""
        if self._watch.reachable:
            with suppress(RuntimeError):
                telling()

    def _until_left(self) -> None:
        failure = self._watch.failure
        gone = set(failure.ranks) if failure is not None else set()
        deadline = time.monotonic() + self._settings.parting
        keys = [f"left/{rank}" for rank in range(self.size) if rank not in gone]
        while not all(self._store.check([key]) for key in keys) and time.monotonic() < deadline:
            time.sleep(LONGEST / 4)

    def _wait(self, what: str, keys: dict[int, str]) -> None:
        with self._watch.waiting():
            start, pause, told = time.monotonic(), FIRST, False
            while True:
                if self._watch.failure is not None:
                    raise _error(self._watch.failure)
                keys = {rank: key for rank, key in keys.items() if not self._has(key)}
                if not keys:
                    return
                waited = time.monotonic() - start
                if waited > self._settings.timeout:
                    message = (
                        f"rank {self.rank} waited {waited:.0f} s for {_ranks(keys)} at {what!r} (LOADKIT_RANKS_TIMEOUT). Every rank of "
                        "a launch has to call load(); where only some do, give together=False"
                    )
                    self.fail([self.rank, *keys], message)
                    raise RankError([self.rank, *keys], message)
                if waited > TELL and not told:
                    told = True
                    log.warning("waiting for %s at %r since %.0f s", _ranks(keys), what, waited)
                time.sleep(pause)
                pause = min(pause * 1.5, LONGEST)

    def _has(self, key: str) -> bool:
        return self._asked(lambda: self._store.check([key]))

    def _set(self, key: str, value: bytes) -> None:
        self._asked(lambda: self._store.set(key, value.decode()))

    def _get(self, key: str) -> bytes:
        return self._asked(lambda: self._store.get(key))

    def _asked(self, asking: Callable[[], T]) -> T:
        """Ask the store, or say that it is gone."""
        try:
            return asking()
        except RuntimeError as error:
            raise _error(self._watch.lost(error)) from error


def _error(failure: Failure) -> RankError:
    return RankError(failure.ranks, failure.message)


def _ranks(ranks: Sequence[int] | dict[int, str]) -> str:
    listed = sorted(ranks)
    return f"rank{'s' if len(listed) > 1 else ''} {', '.join(map(str, listed))}"
