"""Begin an entry with the first tensor that the model gets, while the others are still read and quantized."""

from __future__ import annotations

from typing import Any

from loadkit.plugins import Entries
from loadkit_plugins.quantized_cache.handover import Handover
from loadkit_plugins.quantized_cache.writer import EntryWriting

__all__ = ["EarlyWriting"]


class EarlyWriting:
    """One load's writing from the first tensor on; the thread that makes it is the one that loads.

    Where it can't begin, nothing is said of it: the entry is written when the model is there, or that says
    why it isn't.

    Parameters:
        entries: the cache.
        key: the entry's name; the caller has its lock.
        expected: bytes that the entry will take.
    """

    def __init__(self, entries: Entries, key: str, expected: int) -> None:
        self.writing: EntryWriting | None = None
        """What was begun, if anything was."""
        self._entries, self._key, self._expected = entries, key, expected
        self._over = False
        self._handover = Handover(self._take)

    def end(self) -> None:
        """Have nothing more written before the model is there."""
        self._handover.end()

    def _take(self, tensor: Any, room: int) -> None:
        if self._over:  # torch is going through its hooks: none can be removed here
            return
        try:
            if self.writing is None and not self._entries.room_for(self._expected):
                self.writing = EntryWriting(self._entries, self._key, self._expected)
            if self.writing is not None:
                self.writing.offer(tensor, room)
            self._over = self.writing is None
        except Exception:  # whatever it is, the load goes on
            self._over = True
