"""What a plugin that brings checkpoints from elsewhere hands over: files, a version, and how to read them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping

import msgspec

__all__ = ["CHUNK", "Source", "SourceFile"]

CHUNK = 1 << 23
"""Bytes that `Source.stream` asks for at a time."""


class SourceFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a source.

    Parameters:
        size: its bytes.
        checksum: of its bytes, as "sha256:…" or "md5:…" in hexadecimal; "" where the store has none. What
            is fetched is held against it.
        tag: what else names these bytes in the store, such as an etag, a generation or a time.
    """

    size: int
    checksum: str = ""
    tag: str = ""


class Source(ABC):
    """A checkpoint elsewhere at one moment. `loadkit_open_source` answers with one.

    The core keeps the copy: it asks for ranges, checks them, writes them and resumes. `SourceError` tells
    what can't be had; what else is raised is told as the plugin's fault.
    """

    version: str
    """What identifies this state of the files as a whole; any text. It is hashed with the files' own sizes,
    checksums and tags, so it may be one word where those say all."""

    files: Mapping[str, SourceFile]
    """Every file's path inside the checkpoint, with "/" between its parts."""

    revision: str = ""
    """The revision that was asked for, where the source is of that revision; "" where it has none."""

    workers: int = 8
    """How many files are worth reading at the same time."""

    @abstractmethod
    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """Bytes `start` to `stop` (exclusive) of a file; called from several threads.

        Parameters:
            name: one of `files`.
            start: at least 0.
            stop: more than `start`, and no more than the file's size.

        Returns:
            These bytes, or the first of them where the connection ended: the rest is asked for again.

        Raises:
            SourceError: it can't be had.
        """

    def stream(self, name: str, start: int) -> Iterator[bytes]:
        """The bytes of a file from `start` to its end, in pieces; by ranges where it isn't overridden.

        Raises:
            SourceError: it can't be had.
        """
        size = self.files[name].size
        while start < size:
            piece = self.read_range(name, start, min(start + CHUNK, size))
            if not piece:
                return
            yield piece
            start += len(piece)
