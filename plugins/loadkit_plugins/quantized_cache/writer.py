"""Write one entry of the quantized-checkpoint cache in the background, from the model's first tensor on.

What was written while the model was loading is kept where it is what the model then has: the tensors are told
by where their values lie, and those by checksums. Else all of it is written again.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, NamedTuple

import msgspec

from loadkit.plugins import Entries, Record, checksum
from loadkit_plugins.quantized_cache.early_tensors import EarlyTensors
from loadkit_plugins.quantized_cache.model_state import content, contiguous_bytes, snapshot, write_configs
from loadkit_plugins.quantized_cache.tensor_file import HEADER, TensorFile, room_for

__all__ = ["WEIGHTS", "EntryWriting", "finish_writing"]

WEIGHTS = "model.safetensors"

SYNC_SECONDS = 0.02
"""Between two looks whether there is something for the disk to take."""

SYNC_BYTES = 2**26
"""What the disk is asked to take at a time."""

SPARE = 0.1
"""The part of the memory that stays free, whatever is kept in it."""

NICE = 10
"""The writing threads' priority; 0 is everybody's, 19 the lowest."""

_writing: set[Future[None]] = set()


def finish_writing() -> None:
    """Wait until every entry that this process is writing is there. Leaving the interpreter waits too."""
    wait(list(_writing))


class _Order(NamedTuple):
    """What is to become of the entry, once the load is over."""

    lock: Any
    record: Record | None = None
    """What is known of the entry before it is written; None has nothing kept."""
    held: dict[str, Any] = {}  # noqa: RUF012  (a NamedTuple's default; it stays empty)
    """The model's tensors."""
    digests: Mapping[str, str] = {}
    """Checksums of those that may change from now on, as of now, and of the other files."""


class EntryWriting:
    """One entry on its way to the disk, written by two threads of low priority.

    Parameters:
        entries: the cache.
        key: the entry's name; the caller has its lock.
        expected: bytes that it will take, roughly.

    Raises:
        OSError: nothing can be written; nothing is left of it.
        RuntimeError: no thread can be started; the same.
    """

    def __init__(self, entries: Entries, key: str, expected: int) -> None:
        self._entries, self._key = entries, key
        self._orders: SimpleQueue[weakref.ref[Any] | _Order] = SimpleQueue()
        self._unproved: deque[tuple[str, Any]] = deque()
        self._proved: dict[str, str] = {}
        self._closing = threading.Event()
        self._loading = threading.Lock()
        self._loaded = False
        self._partial = entries.begin(key)
        self.bytes = 0
        """What was offered so far."""
        self.fault: Exception | None = None
        """What ended the writing while the model was loading: the disk is full, say. None for nothing."""
        try:
            self._file = TensorFile(self._partial / WEIGHTS, keep_pages=_pages_may_stay(expected))
        except OSError:
            entries.discard(key)
            raise
        # Both threads are started here: once the program is about to end, none can be.
        pool = ThreadPoolExecutor(2, thread_name_prefix="loadkit-cache")
        started: list[Future[None]] = []
        try:
            started.append(pool.submit(self._prove_and_sync))
            started.append(pool.submit(self._write, started[0]))
        except RuntimeError:
            self._closing.set()
            wait(started)
            self._file.close()
            entries.discard(key)
            raise
        finally:
            pool.shutdown(wait=False)
        _writing.add(started[1])
        started[1].add_done_callback(_writing.discard)

    def offer(self, tensor: Any, room: int) -> None:
        """Have a tensor written that has its final values, while the model is still loading.

        Parameters:
            tensor: in one piece of main memory. It isn't kept alive.
            room: bytes for a header of all that the model will have; the first one counts.

        Raises:
            OSError: nothing can be written.
        """
        if self.fault is None:
            if not self.bytes:
                self._file.restart(room)
            self.bytes += tensor.nbytes
            self._orders.put(weakref.ref(tensor))

    def complete(self, model: Any, state: Mapping[str, Any], record: Record, lock: Any) -> None:
        """Take a snapshot of the model, and have the rest written while the caller goes on.

        Parameters:
            model: the model as it was loaded.
            state: its tensors (`state_of`).
            record: what is known of the entry before it is written.
            lock: the entry's lock, which the writing releases at its end.

        Raises:
            OSError: something can't be written; `give_up` is still to be called then.
        """
        self._end_early()
        held, digests = snapshot(state)
        configs = write_configs(model, self._partial)
        self._orders.put(_Order(lock, record, held, {**digests, **configs}))

    def give_up(self, lock: Any) -> None:
        """Have nothing left of it, and then the lock released."""
        self._end_early()
        self._orders.put(_Order(lock))

    def _end_early(self) -> None:
        """From now on the model may be changed: what was offered and isn't being written yet is left."""
        with self._loading:
            self._loaded = True

    def _offered(self, reference: weakref.ref[Any]) -> Any:
        """A tensor that was offered, whatever is done to the model from now on; None where it is gone."""
        with self._loading:
            tensor = None if self._loaded or self.fault is not None else reference()
            return None if tensor is None or not contiguous_bytes(tensor) else tensor.detach()

    def _write(self, beside: Future[None]) -> None:
        """In a first thread: write what is offered, then the rest, and move the entry to its place."""
        _lower_priority()
        early = EarlyTensors(self._file)
        order = self._orders.get()
        while not isinstance(order, _Order):
            try:
                if (tensor := self._offered(order)) is not None:
                    early.write(tensor)
            except Exception as error:  # whatever it is, the load goes on
                self.fault = error
                with suppress(OSError):
                    self._file.restart(0)
            tensor = None  # not to be kept alive while waiting
            order = self._orders.get()
        try:
            if order.record is not None:
                self._finish(order, order.record, early, beside)
        except Exception as error:  # the disk is full, say: the model is loaded all the same
            self._entries.abandon(self._key, f"{type(error).__name__}: {error}")
        finally:
            self._closing.set()
            wait([beside])
            self._file.close()
            self._entries.discard(self._key)
            order.lock.release()

    def _finish(self, order: _Order, record: Record, early: EarlyTensors, beside: Future[None]) -> None:
        file, held = self._file, order.held
        self._unproved.extend((name, tensor) for name, tensor in held.items() if name not in order.digests)
        places = early.places(held)
        if not places or room_for(held) > file.room:
            places = {}
            file.restart(room_for(held))
        for name in sorted(held.keys() - places.keys(), key=lambda name: (-held[name].element_size(), name)):
            places[name] = file.append(content(held[name]))
        self._prove()
        self._closing.set()
        beside.result()
        expected = {**order.digests, **self._proved}
        for name, place in places.items():
            if place.digest != expected[name]:  # changed since it was written early
                places[name] = place = file.rewrite(place.start, content(held[name]))
            if place.digest != expected[name]:  # somebody changes it just now, or the disk is at fault
                raise OSError(f"{name} isn't what was loaded any more")
        header = file.finish(held, places)
        held.clear()
        written = {HEADER: header, **{name: place.digest for name, place in places.items()}}
        sizes = {path.name: path.stat().st_size for path in sorted(self._partial.iterdir())}
        done = msgspec.structs.replace(record, files=sizes, digests={**order.digests, **written})
        self._entries.finish(self._partial, done)

    def _prove_and_sync(self) -> None:
        """In a second thread: have the disk take what was written, and compute checksums at the end."""
        _lower_priority()
        while not self._closing.wait(SYNC_SECONDS):
            self._prove()
            self._file.sync(SYNC_BYTES)

    def _prove(self) -> None:
        """Compute the checksums that nobody computes yet."""
        with suppress(IndexError):
            while True:
                name, tensor = self._unproved.popleft()
                self._proved[name] = checksum(content(tensor))


def _pages_may_stay(expected: int) -> bool:
    """Whether memory is free for a model and for its entry, so that nobody's pages go for the entry's."""
    if sys.platform != "linux":
        return True
    import psutil

    memory = psutil.virtual_memory()
    return bool(memory.free >= 2 * expected + SPARE * memory.total)


def _lower_priority() -> None:
    """Let the program's own threads have the cores before this one. Only Linux has priorities of threads."""
    if sys.platform != "linux":
        return
    with suppress(OSError):  # a sandbox may forbid it
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
