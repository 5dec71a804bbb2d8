"""Pause Python's garbage collector while libraries are imported and a model is built.

Importing torch and transformers makes half a million objects that stay. The collector looks at all of them
again and again meanwhile, finds next to nothing, and takes a tenth of the load's time with it.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["pause_gc"]

_lock = threading.Lock()
_pauses = 0
"""Blocks under way, of all threads: the last one to end turns the collector on again."""
_was_on = False


@contextmanager
def pause_gc() -> Iterator[None]:
    """Keep the garbage collector from running by itself until the block ends; one that is off stays off.

    Nothing may be waited for in the block: the garbage of other threads stays as long. `gc.collect()` works.
    """
    global _pauses, _was_on
    with _lock:
        if not _pauses:
            _was_on = gc.isenabled()
            gc.disable()
        _pauses += 1
    try:
        yield
    finally:
        with _lock:
            _pauses -= 1
            if not _pauses and _was_on:
                _age()
                gc.enable()


def _age() -> None:
    """Put all objects into the oldest generation, unseen: else the collector would go through them at once.

    Freezing and thawing does that; nothing stays frozen but what somebody froze before, with a reason.
    """
    if not gc.get_freeze_count():
        gc.freeze()
        gc.unfreeze()
