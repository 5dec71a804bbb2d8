"""One load's use of the quantized-checkpoint cache."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Any

import msgspec

from loadkit import Loading
from loadkit.plugins import Entries, Entry, LoadingAid, Record, Stored, size
from loadkit_plugins.quantized_cache.model_state import state_of
from loadkit_plugins.quantized_cache.writer import EntryWriting

if TYPE_CHECKING:
    from loadkit_plugins.quantized_cache.early_writing import EarlyWriting

__all__ = ["Cached"]

WAIT_SECONDS = 3600.0
"""How long a load waits for a process that writes the same entry, before it goes on without the cache."""

POLL_SECONDS = 0.05


class Cached(LoadingAid):
    """One load's view of its entry.

    Parameters:
        key: the entry's name.
        device: torch's type of the device that quantizes.
        entries: the cache.
        about: what the entry is made from, for people.
        expected: bytes that the entry will take; 0 where that isn't known, so that nothing is written before
            the model is there.
        progress: called before waiting for another process.
    """

    def __init__(
        self,
        key: str,
        device: str,
        entries: Entries,
        about: Mapping[str, str],
        expected: int,
        progress: Callable[[str], None],
    ) -> None:
        self._key = key
        self._device = device
        self._entries = entries
        self._about = {name: text for name, text in about.items() if text}
        self._expected = expected
        self._progress = progress
        self._lock: Any = None
        self._entry: Entry | None = None
        self._checking: Future[str] | None = None
        self._early: EarlyWriting | None = None

    def stored(self) -> Stored | None:
        """The entry, if it is whole by names and sizes; its checksums are computed while it is loaded."""
        self._entry = self._entries.find(self._key)
        if self._entry is None:
            self._begin_early()
            return None
        try:
            loading = msgspec.convert(self._entry.record.more.get("loading"), Loading)
        except msgspec.ValidationError:
            self._entries.drop(self._key)
            self._begin_early()
            return None
        pool = ThreadPoolExecutor(1)
        # the libraries' imports, which come next, have a core for themselves
        spare = {} if "torch" in sys.modules else {"workers": max(1, (os.cpu_count() or 1) - 1)}
        self._checking = pool.submit(self._entry.damage, **spare)
        pool.shutdown(wait=False)
        return Stored(folder=self._entry.folder, loading=loading)

    def proved(self, model: Any, loading: Loading) -> bool:
        """Whether checksums hold and every tensor had its place, in the dtype and shape that it had."""
        assert self._entry is not None
        assert self._checking is not None
        fault = self._checking.result()
        if fault:
            self._entries.drop(self._key)
            self.line = f"the entry was damaged ({fault}): quantized anew"
            self._begin_early()
            return False
        more = self._entry.record.more
        known = _restore_conversions(model, more.get("conversions", []))
        if not known or not super().proved(model, loading) or _shape(model) != more.get("shape"):
            self._entries.drop(self._key)
            self._entries.abandon(self._key, "what is stored of it doesn't load as it was", lasting=True)
            self.line = "what was stored doesn't load as it was: quantized anew, and not kept"
            return False
        self._entries.touch(self._key)
        by = f", made by the user {owner}" if (owner := self._entry.owner) else ""
        self.line = f"{size(self._entry.bytes)} quantized before, from the cache ({self._key[:12]}{by})"
        return True

    def failed(self, error: Exception) -> None:
        """The entry couldn't be loaded: pruned meanwhile, or damaged."""
        if isinstance(error.__cause__, OSError):  # of the disk, or it was pruned meanwhile
            self.line = f"the entry couldn't be read ({error.__cause__}): quantized anew"
            self._begin_early()
            return
        damaged = self._checking is not None and self._checking.result()
        if not damaged and self._entries.find(self._key) is not None:
            self._entries.abandon(self._key, f"what is stored of it can't be loaded ({error.__cause__!r})")
        self._entries.drop(self._key)
        self._begin_early()
        self.line = "the entry couldn't be loaded: quantized anew"

    def disproved(self, difference: str) -> None:
        """The entry is whole and holds something else: it is made anew, and kept."""
        self._entries.drop(self._key)
        self.line = f"the entry was wrong ({difference}): quantized anew"
        self._begin_early()

    def __enter__(self) -> Cached:
        """Take the lock, or wait for whoever has it to be done."""
        if self._entries.refused(self._key):
            return self
        lock = self._entries.lock(self._key)
        if lock is None:
            self.line = self.line or f"not kept: {self._entries.root} can't be written"
            return self
        start, reported = time.monotonic(), False
        while time.monotonic() - start < WAIT_SECONDS:
            try:
                lock.acquire(timeout=0)
            except TimeoutError:
                if not reported:
                    self._progress("waiting for another process that quantizes the same model")
                    reported = True
                time.sleep(POLL_SECONDS)
                continue
            except OSError as error:
                self.line = f"not kept: {self._entries.root} can't be locked ({error})"
                return self
            self._lock = lock
            return self
        self.line = "not kept: another process holds the entry's lock"
        return self

    def _begin_early(self) -> None:
        """The checkpoint itself is loaded now: have it written meanwhile, where this load has the lock."""
        if self._lock is not None and self._early is None and self._expected:
            from loadkit_plugins.quantized_cache.early_writing import EarlyWriting  # imports torch

            self._early = EarlyWriting(self._entries, self._key, self._expected)

    def keep(self, model: Any, loading: Loading) -> None:
        """Have the model written while the caller goes on, where it can be kept."""
        if self._lock is None:
            return
        try:
            reason = _why_not_kept(model, loading, self._device)
            if reason:
                self._add(f"not kept: {reason}")
                return
            state = state_of(model)
            wanted = sum(tensor.nbytes for tensor in state.values())
            writing = self._early.writing if self._early else None
            if reason := self._entries.room_for(wanted, begun=writing.bytes if writing else 0):
                self._entries.abandon(self._key, reason)
                self._add(f"not kept: {reason}")
                return
            more = {
                "loading": msgspec.to_builtins(loading),
                "shape": _shape(model),
                "conversions": [_named(conversion) for conversion in model._weight_conversions],
            }
            record = Record(key=self._key, created=time.time(), files={}, about=self._about, more=more)
            if writing is None:
                writing = EntryWriting(self._entries, self._key, wanted)
            elif writing.fault is not None:
                raise writing.fault
            writing.complete(model, state, record, self._lock)
        except Exception as error:  # whatever it is, the model is loaded: only the next load is slower
            self._entries.abandon(self._key, f"{type(error).__name__}: {error}")
            self._add(f"not kept: {type(error).__name__}: {error}")
            return
        self._lock = None
        self._add(f"{size(wanted)} are kept for the next load ({self._key[:12]})")

    def _add(self, said: str) -> None:
        """Say one thing more: that an entry was wrong isn't forgotten over that another is kept."""
        self.line = f"{self.line}; {said}" if self.line else said

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release the lock, unless the writing took it over, or has something to remove before."""
        writing = None
        if self._early is not None:
            self._early.end()
            writing = self._early.writing
        if self._lock is not None:
            if writing is not None:
                writing.give_up(self._lock)
            else:
                self._lock.release()
            self._lock = None


def _why_not_kept(model: Any, loading: Loading, device: str) -> str:
    """Why a model can't be kept; "" where it can."""
    if loading.missing or loading.mismatched or loading.errors:
        return "some of its weights don't come from the checkpoint"
    kinds = {parameter.device.type for parameter in model.parameters()}
    if kinds != {device}:
        return f"its parameters are on {', '.join(sorted(kinds))}"
    return ""


def _named(conversion: Any) -> list[Any]:
    """What identifies one of transformers' weight conversions among those of a model."""
    return [
        type(conversion).__name__,
        list(conversion._original_source_patterns),
        list(conversion._original_target_patterns),
        conversion.scope_prefix or "",
    ]


def _restore_conversions(model: Any, names: list[Any]) -> bool:
    """Have a model save its weights under its checkpoint's names; False where transformers lost a conversion.

    transformers 5.23 keeps the conversions that were used while loading for `save_pretrained` to undo. What
    is stored needs none, but was made with them.
    """
    if not names:
        model._weight_conversions = []
        return True
    from transformers.conversion_mapping import get_model_conversion_mapping

    every = get_model_conversion_mapping(model, hf_quantizer=model.hf_quantizer)
    by_name = {str(_named(conversion)): conversion for conversion in every}
    found = [by_name.get(str(name)) for name in names]
    model._weight_conversions = found
    return None not in found


def _shape(model: Any) -> str:
    """A digest of every parameter's and buffer's name, class, dtype and shape."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        digest.update(f"{name} {type(tensor).__name__} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
    return digest.hexdigest()
