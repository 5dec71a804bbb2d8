"""Heartbeats, on a thread of their own: who is gone is noticed; who is busy is stopped when another fails."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import msgspec

from loadkit.ranks.settings import Settings
from loadkit.ranks.stores import Store

__all__ = ["FAILED", "Failure", "Heartbeat", "Stopped"]

FAILED = "failed"
"""The key under which the first failure of any rank stands."""

AGAIN = 5.0
"""Seconds after which a thread that went on all the same is stopped once more."""


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Why the launch stops: the ranks that it is about, and what happened."""

    ranks: tuple[int, ...]
    message: str


class Stopped(BaseException):
    """Raised in a busy thread because another rank failed; never seen outside."""


class Heartbeat:
    """This rank's heartbeat, and an eye on others: rank 0's on everybody's, the others' on rank 0's.

    It interrupts the thread that makes it, from `interrupt` on: whoever makes it has to have it first.
    """

    def __init__(self, store: Store, rank: int, size: int, settings: Settings) -> None:
        self.failure: Failure | None = None
        self.reachable = True
        self._store = store.clone()  # its own connection: a store serves one thread at a time
        self._store.set_timeout(timedelta(seconds=settings.silence))
        self._rank = rank
        self._settings = settings
        self._not_yet_seen = set(range(size)) - {rank} if rank == 0 else {0}
        self._last_seen: dict[int, tuple[bytes, float]] = {}
        self._loading_thread = threading.get_ident()
        self._interruptible = False
        self._interrupted_at = 0.0
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="loadkit-ranks", daemon=True)
        self._thread.start()

    def interrupt(self) -> None:
        """Interrupt the loading thread from now on, where another rank fails or has failed."""
        with self._lock:
            self._interruptible = True

    @contextmanager
    def uninterrupted(self) -> Iterator[None]:
        """While the loading thread waits, it looks for failures itself."""
        with self._lock:
            before, self._interruptible = self._interruptible, False
        try:
            yield
        finally:
            with self._lock:
                self._interruptible = before

    def store_lost(self, error: Exception) -> Failure:
        """Note that the store is gone, and give this launch's first failure."""
        self.reachable = False
        failure = Failure(
            ranks=(0,),
            message="the store that the processes of this launch share can't be reached any more: rank 0, its launcher or its "
            f"machine is gone ({str(error).splitlines()[0]})",
        )
        self._failed(failure)
        return self.failure or failure

    def stop(self) -> None:
        """End it; afterwards nothing interrupts the loading thread any more."""
        while not self._stopped():
            pass

    def _stopped(self) -> bool:
        try:
            with self._lock:
                self._interruptible = False
            self._end.set()
            self._thread.join(self._settings.silence)
            # What was sent arrives here. Taken back by PyThreadState_SetAsyncExc(…, None), CPython 3.11 would
            # look for it ever after, and hang in the first call under a profiler, a debugger or coverage.
            for _ in range(2):
                pass
        except Stopped:  # its interruption was on its way
            return False
        return True

    def _run(self) -> None:
        beats = 0
        while not self._end.is_set():
            try:
                beats += 1
                self._store.set(f"heartbeat/{self._rank}", str(beats))
                self._look()
            except RuntimeError as error:  # torch's DistError, or its timeout
                self.store_lost(error)
            if self.failure is not None:
                self._interrupt()
            self._end.wait(self._settings.beat)

    def _look(self) -> None:
        if self._store.check([FAILED]):
            self._failed(msgspec.json.decode(self._store.get(FAILED), type=Failure))
            return
        arrived = [r for r in sorted(self._not_yet_seen) if self._store.check([f"heartbeat/{r}"])]
        self._not_yet_seen -= {*arrived}
        now = time.monotonic()
        self._last_seen |= dict.fromkeys(arrived, (b"", now))
        ranks = sorted(self._last_seen)
        beats = self._store.multi_get([f"heartbeat/{r}" for r in ranks]) if ranks else []
        for rank, beat in zip(ranks, beats, strict=True):
            last, when = self._last_seen[rank]
            if beat != last:
                self._last_seen[rank] = (beat, now)
            elif now - when > self._settings.silence:
                message = f"rank {rank} has given no sign of life for {now - when:.0f} s: it was killed, or its machine hangs"
                failure = Failure(ranks=(rank,), message=message)
                self._store.compare_set(FAILED, "", msgspec.json.encode(failure).decode())
                self._failed(failure)

    def _failed(self, failure: Failure) -> None:
        if self.failure is None:
            self.failure = failure

    def _interrupt(self) -> None:
        with self._lock:
            if self._interruptible and time.monotonic() - self._interrupted_at > AGAIN:
                self._interrupted_at = time.monotonic()
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(self._loading_thread), ctypes.py_object(Stopped)
                )
