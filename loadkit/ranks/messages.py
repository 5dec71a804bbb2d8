"""What the ranks send each other during one load, with failures and timeouts."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import TypeVar

import msgspec

from loadkit.errors import RankError
from loadkit.ranks.heartbeat import FAILED, Failure, Heartbeat
from loadkit.ranks.rank_names import named
from loadkit.ranks.settings import Settings
from loadkit.ranks.stores import Store

__all__ = ["Messages"]

T = TypeVar("T")
WARN_AFTER = 30.0
"""Seconds of waiting after which a warning names the ranks that are waited for."""

SHORTEST, LONGEST = 0.005, 0.2
"""Seconds between two looks at the store, at first and at most."""

log = logging.getLogger(__name__)


class Messages:
    """Messages of the ranks of one load, which has a store of its own (`prefixed`).

    Every rank calls the same methods in the same order. Errors name the steps, so `what` is in words.
    """

    def __init__(self, store: Store, rank: int, size: int, settings: Settings) -> None:
        self.rank = rank
        self.size = size
        self._settings = settings
        self._store = store
        self._store.set_timeout(timedelta(seconds=settings.silence))
        self._heartbeat = Heartbeat(store, rank, size, settings)
        self._failed = False

    def gather(self, what: str, value: T, kind: type[T]) -> list[T]:
        """Every rank's value, by rank, once all are there; `RankError` where one failed, is gone or late."""
        self._set(f"{what}/{self.rank}", value)
        if self.rank == 0:
            keys = [f"{what}/{rank}" for rank in range(self.size)]
            self._wait(what, dict(enumerate(keys)))
            together = [self._get(key, kind) for key in keys]
            self._set(f"{what}/all", together)
            return together
        self._wait(what, {0: f"{what}/all"})
        return self._get(f"{what}/all", list[kind])  # type: ignore[valid-type]

    def broadcast(self, what: str, value: T) -> None:
        """Send the others what they `receive`, without waiting for them."""
        self._set(f"{what}/broadcast", value)

    def receive(self, what: str, root: int, kind: type[T]) -> T:
        """Wait for what another rank, the root, broadcasts; raises as `gather` does."""
        self._wait(what, {root: f"{what}/broadcast"})
        return self._get(f"{what}/broadcast", kind)

    def fail(self, ranks: Sequence[int], message: str) -> None:
        """Stop all ranks, unless another failure has."""
        self._failed = True
        failure = Failure(ranks=tuple(ranks), message=message)
        self._try(lambda: self._store.compare_set(FAILED, "", msgspec.json.encode(failure).decode()))

    @property
    def failure(self) -> RankError | None:
        """Why this rank has to stop."""
        failure = self._heartbeat.failure
        return None if failure is None else _error(failure)

    def interrupt(self) -> None:
        """From now on this thread is interrupted, by `Stopped`, where another rank fails."""
        self._heartbeat.interrupt()

    def stop_heartbeat(self) -> None:
        """This rank has loaded, or failed: nothing interrupts it any more."""
        self._heartbeat.stop()

    def close(self) -> None:
        """Leave. Rank 0 (it may keep the store) and one that failed (its launcher ends the rest) go last."""
        self._try(lambda: self._store.set(f"closed/{self.rank}", ""))
        if self.rank == 0 or self._failed:
            self._try(self._until_others_closed)

    def _try(self, sending: Callable[[], object]) -> None:
        """Send, unless the store is known to be gone: torch prints a stack at each attempt."""
        if self._heartbeat.reachable:
            with suppress(RuntimeError):
                sending()

    def _until_others_closed(self) -> None:
        failure = self._heartbeat.failure
        gone = set(failure.ranks) if failure is not None else set()
        deadline = time.monotonic() + self._settings.parting
        keys = [f"closed/{rank}" for rank in range(self.size) if rank not in gone]
        while not all(self._store.check([key]) for key in keys) and time.monotonic() < deadline:
            time.sleep(LONGEST / 4)

    def _wait(self, what: str, keys: dict[int, str]) -> None:
        with self._heartbeat.uninterrupted():
            start, pause, warned = time.monotonic(), SHORTEST, False
            while True:
                if self._heartbeat.failure is not None:
                    raise _error(self._heartbeat.failure)
                keys = {rank: key for rank, key in keys.items() if not self._has(key)}
                if not keys:
                    return
                waited = time.monotonic() - start
                if waited > self._settings.timeout:
                    message = (
                        f"rank {self.rank} waited {waited:.0f} s for {named(keys)} at {what!r} (LOADKIT_RANKS_TIMEOUT). Every rank of "
                        "a launch has to call load(); where only some do, give together=False"
                    )
                    self.fail([self.rank, *keys], message)
                    raise RankError([self.rank, *keys], message)
                if waited > WARN_AFTER and not warned:
                    warned = True
                    log.warning("waiting for %s at %r since %.0f s", named(keys), what, waited)
                time.sleep(pause)
                pause = min(pause * 1.5, LONGEST)

    def _has(self, key: str) -> bool:
        return self._ask(lambda: self._store.check([key]))

    def _set(self, key: str, value: object) -> None:
        self._ask(lambda: self._store.set(key, msgspec.json.encode(value).decode()))

    def _get(self, key: str, kind: type[T]) -> T:
        return msgspec.json.decode(self._ask(lambda: self._store.get(key)), type=kind)

    def _ask(self, asking: Callable[[], T]) -> T:
        try:
            return asking()
        except RuntimeError as error:
            raise _error(self._heartbeat.store_lost(error)) from error


def _error(failure: Failure) -> RankError:
    return RankError(failure.ranks, failure.message)
