"""A checkpoint that a plugin brings, as the files of one: ranges from the source, small files through the
copy."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from typing import Literal

from loadkit.errors import Problem
from loadkit.facts.checkpoint.source import OpenedStore, checkpoint_problem
from loadkit.facts.stores.copies import StoreCopy, unwritable
from loadkit.facts.stores.listing import Listing, bad_source
from loadkit.schema.sources import SourceFile
from loadkit.text.suggest import some_of

__all__ = ["PAUSES", "CopiedFiles", "StoreFiles", "cut_short", "damaged"]

PAUSES = (0.25, 0.5, 1.0)
"""Seconds before each further attempt at bytes that didn't come."""

PIECES = 1024
"""How many answers one range may take: a source that gives a byte at a time isn't read for ever."""


class StoreFiles:
    """A source at one commit. Small files go into its copy, of weight files only ranges are read."""

    kind: Literal["folder", "hub", "store"] = "store"
    first_bytes = 65_536

    def __init__(
        self, location: str, revision: str, listing: Listing, store: OpenedStore, copy: StoreCopy
    ) -> None:
        self.location = location
        self.revision = revision
        self.commit = listing.commit
        self.sizes = {name: file.size for name, file in listing.files.items()}
        self.workers = store.workers
        self._files = listing.files
        self._store = store
        self._copy = copy
        self._failed: Problem | None = None

    def __str__(self) -> str:
        return f"{self.location!r} at {self.commit[:12]}"

    def size(self, name: str) -> int | None:
        """Bytes of a file, as the source says."""
        return self.sizes.get(name)

    def read(self, name: str) -> bytes | Problem:
        """A whole small file, through the copy."""
        about = self._files[name]
        if self._copy.has(name, about):
            return self._copy.opened().read(name)
        content = self._range(name, 0, about.size)
        if isinstance(content, Problem):
            return content
        if fault := checksum_fault(content, about):
            return damaged(self.location, name, fault)
        try:
            self._copy.put(name, content)
        except OSError as error:
            return unwritable(self.location, error)
        return content

    def read_range(self, name: str, start: int, stop: int) -> bytes | Problem:
        """Bytes `start` to `stop` (exclusive), from the copy or the source; fewer where the file ends."""
        about = self._files[name]
        if self._copy.has(name, about):
            return self._copy.opened().read_range(name, start, stop)
        return self._range(name, start, min(stop, about.size))

    def refusals(self) -> list[Problem]:
        """What was copied is looked at: a source has no links, and its names have been."""
        return self._copy.opened().refusals()

    def absent(self, names: Iterable[str], otherwise: Problem) -> Problem:
        """The source listed every file: what isn't among them doesn't exist."""
        return otherwise

    def _range(self, name: str, start: int, stop: int) -> bytes | Problem:
        if self._failed:
            return self._failed
        found, pauses = bytearray(), iter(PAUSES)
        for _ in range(PIECES):
            if start + len(found) >= stop:
                return bytes(found)
            piece = self._store.read(name, start + len(found), stop)
            if isinstance(piece, Problem) and piece.code != "source-failed":
                self._failed = piece  # whatever else is read would have it too
                return piece
            if isinstance(piece, bytes) and piece:
                found += piece
                continue
            pause = next(pauses, None)
            if pause is None:
                return (
                    piece
                    if isinstance(piece, Problem)
                    else cut_short(self.location, name, start + len(found), stop)
                )
            time.sleep(pause)
        return bad_source(self.location, self._store.plugin, f"it gives {name!r} in pieces of a few bytes")


class CopiedFiles:
    """What is here of a source at one commit; `why` says why it isn't asked."""

    kind: Literal["folder", "hub", "store"] = "store"
    workers = 1

    def __init__(self, revision: str, copy: StoreCopy, why: str) -> None:
        folder = copy.opened()
        self.location = copy.reference
        self.revision = revision
        self.commit = copy.commit
        said = copy.files() or {}
        self.sizes = {
            name: size for name, size in folder.sizes.items() if name in said and said[name].size == size
        }
        self.read = folder.read
        self.read_range = folder.read_range
        self.first_bytes = folder.first_bytes
        self.refusals = folder.refusals
        self._why = why

    def size(self, name: str) -> int | None:
        """Bytes of a file that is here whole."""
        return self.sizes.get(name)

    def __str__(self) -> str:
        return f"the copy of {self.location!r} at {self.commit[:12]}"

    def absent(self, names: Iterable[str], otherwise: Problem) -> Problem:
        """Files that aren't here may well be there."""
        message = f"{self}: {some_of(names)} isn't on this machine, and the source isn't asked: {self._why}"
        return checkpoint_problem(
            "offline-not-cached", message, "load it once where the source can be asked; that keeps a copy"
        )


def checksum_fault(content: bytes, about: SourceFile) -> str:
    """How bytes differ from the checksum that their source gave; "" where they don't, or it gave none."""
    kind, _, expected = about.checksum.partition(":")
    found = hashlib.new(kind, content, usedforsecurity=False).hexdigest() if kind else expected
    return f"expected {kind} {expected[:12]}…, got {found[:12]}…" if found != expected else ""


def damaged(reference: str, name: str, fault: str) -> Problem:
    """The problem of a file that isn't what its checksum names."""
    return checkpoint_problem(
        "damaged-download",
        f"{name} of {reference!r} isn't the file that its checksum names: {fault}",
        "load again: nothing of it was kept; if it comes again, the file is damaged at its source, or on the way",
    )


def cut_short(reference: str, name: str, found: int, expected: int) -> Problem:
    """The problem of bytes that don't come, after several attempts."""
    return checkpoint_problem(
        "source-cut-short",
        f"{name} of {reference!r} breaks off after byte {found:,} of {expected:,}, and asking again brought nothing",
        "load again: what has arrived is kept, and the rest is asked for; if it comes again, check the connection",
    )
