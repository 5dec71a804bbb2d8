"""What can't be kept, and why: remembered beside the entries, so that no load tries in vain."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from loadkit.cache.atomic_write import write_whole
from loadkit.cache.ownership import is_key
from loadkit.cache.seals import is_whole, seal

__all__ = ["REFUSAL_SECONDS", "Refusal", "Refusals"]

REFUSAL_SECONDS = 3600.0
"""How long a failed writing is remembered, so that waiting processes don't repeat it one after the other."""

ENDING = ".refused"


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """Why an entry isn't kept.

    Parameters:
        reason: what happened.
        at: when, in seconds since 1970.
        lasting: whether it holds until it is cleared, not for an hour: what is stored of the base was shown
            not to come back as it was.
    """

    reason: str
    at: float
    lasting: bool = False

    @property
    def holds(self) -> bool:
        """Whether it still counts; the clock may have been put back."""
        return self.lasting or abs(time.time() - self.at) < REFUSAL_SECONDS


class Refusals:
    """The refusals under one folder. What can't be read, or isn't as it was written, is none.

    Parameters:
        root: the folder.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def of(self, key: str) -> Refusal | None:
        """What is known against a key; None for nothing, or what doesn't hold any more."""
        try:
            content = self._path(key).read_bytes()
            found = msgspec.json.decode(content, type=Refusal)
            return found if found.holds and is_whole(content) else None
        except (OSError, ValueError, RecursionError, msgspec.MsgspecError):
            return None

    def add(self, key: str, reason: str, *, lasting: bool = False) -> None:
        """Remember one, where that can be written."""
        refusal = Refusal(reason=reason, at=time.time(), lasting=lasting)
        with suppress(OSError):
            write_whole(self._path(key), seal(refusal))

    def clear(self, key: str) -> None:
        """Forget what is known against a key."""
        with suppress(OSError):
            self._path(key).unlink()

    def __iter__(self) -> Iterator[tuple[str, Refusal]]:
        """Every key that something is known against, in order, with it."""
        try:
            names = sorted(os.listdir(self._root))
        except OSError:
            return
        for name in names:
            key = name.removeprefix(".").removesuffix(ENDING)
            if name == f".{key}{ENDING}" and is_key(key) and (found := self.of(key)) is not None:
                yield key, found

    def _path(self, key: str) -> Path:
        return self._root / f".{key}{ENDING}"
