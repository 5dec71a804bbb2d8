"""Write one entry of the quantized-checkpoint cache in the background."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from loadkit.plugins import Entries, Record, checksum, checksums, file_checksums

__all__ = ["WEIGHTS", "begin_writing", "finish_writing", "state_of"]

WEIGHTS = "model.safetensors"

SYNC_SECONDS = 0.02
"""Between two requests that the disk take what was written so far."""

NICE = 10
"""The writing threads' priority; 0 is everybody's, 19 the lowest."""

_writing: set[Future[None]] = set()


def finish_writing() -> None:
    """Wait until every entry that this process is writing is there. Leaving the interpreter waits too."""
    wait(list(_writing))


def begin_writing(entries: Entries, lock: Any, model: Any, state: Mapping[str, Any], record: Record) -> None:
    """Take a snapshot of a model, and have it written while the caller goes on.

    Parameters:
        entries: the cache.
        lock: the entry's lock, which the writing releases at its end.
        model: the model as it was loaded.
        state: its tensors (`state_of`).
        record: what is known of the entry before it is written.

    Raises:
        OSError: nothing can be written; the lock stays the caller's.
        RuntimeError: no thread can be started; the same.
    """
    held, digests = _snapshot(state)
    partial = entries.begin(record.key)
    digests |= _write_configs(model, partial)
    # Both threads are started here: once the program is about to end, none can be.
    pool = ThreadPoolExecutor(2, thread_name_prefix="loadkit-cache")
    saved = threading.Event()
    try:
        beside = pool.submit(_check_and_sync, held, digests.keys(), entries, partial, saved)
        writing = pool.submit(_write, entries, lock, partial, held, digests, record, saved, beside)
    except RuntimeError:
        saved.set()
        raise
    finally:
        pool.shutdown(wait=False)
    _writing.add(writing)
    writing.add_done_callback(_writing.discard)


def state_of(model: Any) -> dict[str, Any]:
    """The tensors as transformers would save them, tied ones once."""
    from transformers.modeling_utils import remove_tied_weights_from_state_dict

    state = dict(model.state_dict())
    for name in model._keys_to_ignore_on_save or ():
        state.pop(name, None)
    state = remove_tied_weights_from_state_dict(state, model)
    return {name: tensor if tensor.is_contiguous() else tensor.contiguous() for name, tensor in state.items()}


def _write(
    entries: Entries,
    lock: Any,
    partial: Path,
    state: dict[str, Any],
    digests: Mapping[str, str],
    record: Record,
    saved: threading.Event,
    beside: Future[dict[str, str]],
) -> None:
    """Write the tensors, read them back, and move the entry to its place."""
    from safetensors.torch import save_file

    _lower_priority()
    try:
        try:
            save_file(state, partial / WEIGHTS, metadata={"format": "pt"})
        finally:
            saved.set()
        expected = {**digests, **beside.result()}
        state.clear()
        written = file_checksums(partial / WEIGHTS, workers=1)
        changed = [name for name in written if name in expected and written[name] != expected[name]]
        if changed:  # somebody changed the model in place meanwhile, or the disk is at fault
            raise OSError(f"{changed[0]} isn't what was loaded any more")
        sizes = {path.name: path.stat().st_size for path in sorted(partial.iterdir())}
        entries.finish(partial, msgspec.structs.replace(record, files=sizes, digests={**expected, **written}))
    except Exception as error:  # the disk is full, say: the model is loaded all the same
        entries.abandon(record.key, f"{type(error).__name__}: {error}")
    finally:
        lock.release()


def _check_and_sync(
    state: Mapping[str, Any], known: Collection[str], entries: Entries, partial: Path, saved: threading.Event
) -> dict[str, str]:
    """In a second thread: compute the missing checksums, and have the disk take what was written."""
    _lower_priority()
    digests = _checksums({name: t for name, t in state.items() if name not in known}, workers=1)
    while not saved.wait(SYNC_SECONDS):
        entries.sync(partial)
    return digests


def _lower_priority() -> None:
    """Let the program's own threads have the cores before this one. Only Linux has priorities of threads."""
    if sys.platform != "linux":
        return
    with suppress(OSError):  # a sandbox may forbid it
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)


def _snapshot(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The tensors, those that may be changed in place copied to main memory, with their checksums as of now.

    Packed weights aren't changed in place: their libraries make new tensors.
    """
    held = {name: tensor.cpu() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    return held, _checksums({name: t for name, t in held.items() if t.is_floating_point()})


def _checksums(state: Mapping[str, Any], **how: int) -> dict[str, str]:
    import torch

    def content(tensor: Any) -> Callable[[], Any]:
        return lambda: tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy()

    return checksums({name: content(tensor) for name, tensor in state.items()}, **how)


def _write_configs(model: Any, folder: Path) -> dict[str, str]:
    """What transformers alone needs beside the weights; checksums by file."""
    model.config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
    return {path.name: checksum(path.read_bytes()) for path in sorted(folder.iterdir())}
