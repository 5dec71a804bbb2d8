"""Signs of life, on a thread of their own: who is gone is noticed, and who is busy is stopped when another one fails."""

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

__all__ = ["Failure", "Stopped", "Watch"]

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


class Watch:
    """Gives signs of life of this rank, and looks for those of others: rank 0 for everybody's, the others for rank 0's.

    Parameters:
        store: the store, with a prefix for this load.
        rank: this rank.
        size: how many there are.
        settings: how long the others may be silent.
    """

    def __init__(self, store: Store, rank: int, size: int, settings: Settings) -> None:
        self.failure: Failure | None = None
        self.reachable = True
        self._store = store.clone()  # its own connection: a store serves one thread at a time
        self._store.set_timeout(timedelta(seconds=settings.silence))
        self._rank = rank
        self._settings = settings
        self._unseen = set(range(size)) - {rank} if rank == 0 else {0}
        self._seen: dict[int, tuple[bytes, float]] = {}
        self._loading = threading.get_ident()
        self._interruptible = True
        self._stopped_at = 0.0
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="loadkit-ranks", daemon=True)
        self._thread.start()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """While this thread waits it looks for failures itself, and isn't interrupted."""
        with self._lock:
            self._interruptible = False
        try:
            yield
        finally:
            with self._lock:
                self._interruptible = True

    def lost(self, error: Exception) -> Failure:
        """The store is gone; what is told of it."""
        self.reachable = False
        failure = Failure(
            ranks=(0,),
            message="the store that the processes of this launch share can't be reached any more: rank 0, its launcher or its "
            f"machine is gone ({str(error).splitlines()[0]})",
        )
        self._failed(failure)
        return self.failure or failure

    def end(self) -> None:
        """Give no more signs of life. What stopped this thread has done so when this returns, and nothing will."""
        while not self._ended():
            pass

    def _ended(self) -> bool:
        try:
            with self._lock:
                self._interruptible = False
            self._end.set()
            self._thread.join(self._settings.silence)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._loading), None)
        except Stopped:  # it was on its way
            return False
        return True

    def _run(self) -> None:
        beats = 0
        while not self._end.is_set():
            try:
                beats += 1
                self._store.set(f"alive/{self._rank}", str(beats))
                self._look()
            except RuntimeError as error:  # torch's DistError, or its timeout
                self.lost(error)
            if self.failure is not None:
                self._interrupt()
            self._end.wait(self._settings.beat)

    def _look(self) -> None:
        if self._store.check([FAILED]):
            self._failed(msgspec.json.decode(self._store.get(FAILED), type=Failure))
            return
        arrived = [r for r in sorted(self._unseen) if self._store.check([f"alive/{r}"])]
        self._unseen -= {*arrived}
        now = time.monotonic()
        self._seen |= dict.fromkeys(arrived, (b"", now))
        ranks = sorted(self._seen)
        beats = self._store.multi_get([f"alive/{r}" for r in ranks]) if ranks else []
        for rank, beat in zip(ranks, beats, strict=True):
            last, when = self._seen[rank]
            if beat != last:
                self._seen[rank] = (beat, now)
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
            if self._interruptible and time.monotonic() - self._stopped_at > AGAIN:
                self._stopped_at = time.monotonic()
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(self._loading), ctypes.py_object(Stopped)
                )
