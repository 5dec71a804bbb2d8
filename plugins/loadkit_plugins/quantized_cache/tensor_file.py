"""A safetensors file that is written tensor by tensor, before it is known what will all be in it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from loadkit.plugins import running_checksum

__all__ = ["ALIGNMENT", "DTYPES", "HEADER", "Place", "TensorFile", "aligned", "room_for"]

ALIGNMENT = 64
"""Every tensor that isn't among the last begins at a multiple of it; the header ends at one."""

HEADER = ""
"""The name under which `file_checksums` has a file's header."""

PIECE = 2**20
"""Bytes that are written, and read back, at a time: they stay in a core's cache."""

DTYPES: Mapping[str, str] = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "uint16": "U16", "int16": "I16", "uint32": "U32", "int32": "I32",
    "uint64": "U64", "int64": "I64", "float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0",
}  # fmt: skip
"""torch's names of dtypes to safetensors'."""


class Place(NamedTuple):
    """Where a tensor lies in the file, up to but not with `stop`, and the checksum of what was read back."""

    start: int
    stop: int
    digest: str


class TensorFile:
    """The file: first room for a header, then tensors without holes, at last the header.

    One thread writes; another one may have the disk take what was written.

    Parameters:
        path: where it is made.
        keep_pages: whether what the disk has taken may stay in memory, for whoever reads it next.

    Raises:
        OSError: it can't be made.
    """

    def __init__(self, path: Path, *, keep_pages: bool = True) -> None:
        self._file = open(path, "w+b", buffering=0)  # noqa: SIM115  (closed by `close`)
        self._keep_pages = keep_pages
        self._buffer = memoryview(bytearray(PIECE))
        self.room = 0
        """Bytes that the header may take, with those that tell how many."""
        self.end = 0
        """Where the next tensor begins. What lies before was read back."""
        self._synced = 0

    def append(self, content: Any) -> Place:
        """Write a tensor's bytes behind the others, and read them back.

        Raises:
            OSError: they can't be written.
        """
        place = self.rewrite(self.end, content)
        self.end = place.stop
        return place

    def rewrite(self, start: int, content: Any) -> Place:
        """Write a tensor's bytes where it lies already, and read them back.

        Raises:
            OSError: they can't be written.
        """
        whole, digest = memoryview(content), running_checksum()
        for begin in range(0, len(whole), PIECE):
            piece = whole[begin : begin + PIECE]
            self._write(start + begin, piece)
            digest.update(self._read(start + begin, len(piece)))
        return Place(start, start + len(whole), digest.hexdigest())

    def restart(self, room: int) -> None:
        """Begin, or begin anew.

        Parameters:
            room: for the header; a multiple of `ALIGNMENT`.

        Raises:
            OSError: it can't be emptied.
        """
        self._file.truncate(0)
        self.room = self.end = self._synced = room

    def finish(self, tensors: Mapping[str, Any], places: Mapping[str, Place]) -> str:
        """Write the header, filled up with spaces, as the format allows.

        Parameters:
            tensors: all that lie in the file, by name.
            places: where each lies.

        Returns:
            The checksum of the header's part of the file, as it was read back.

        Raises:
            OSError: it can't be written.
        """
        size = self.room - 8
        header = _header({n: (t, *places[n][:2]) for n, t in tensors.items()}, self.room)
        return self.rewrite(0, size.to_bytes(8, "little") + header.ljust(size)).digest

    def sync(self, least: int = 1) -> None:
        """Have the disk take what was written since the last time, where that is so many bytes at least.

        Raises:
            OSError: the disk failed.
        """
        start, end = self._synced, self.end
        if end - start < least:
            return
        getattr(os, "fdatasync", os.fsync)(self._file.fileno())
        self._synced = end
        if not self._keep_pages and hasattr(os, "posix_fadvise"):
            with suppress(OSError):
                os.posix_fadvise(self._file.fileno(), start, end - start, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        self._file.close()

    def _write(self, at: int, piece: memoryview) -> None:
        self._file.seek(at)
        while len(piece):
            piece = piece[self._file.write(piece) :]

    def _read(self, at: int, count: int) -> memoryview:
        self._file.seek(at)
        got = 0
        while got < count:
            read = self._file.readinto(self._buffer[got:count])
            if not read:
                raise OSError("what was written can't be read back")
            got += read
        return self._buffer[:count]


def room_for(tensors: Mapping[str, Any]) -> int:
    """The room that the header of a file with these tensors takes at most.

    Raises:
        ValueError: safetensors has no such dtype.
    """
    if unknown := {_dtype(tensor) for tensor in tensors.values()} - DTYPES.keys():
        raise ValueError(f"safetensors has no {min(unknown)}")
    end = sum(tensor.nbytes for tensor in tensors.values())
    return aligned(8 + len(_header({name: (tensor, end, end) for name, tensor in tensors.items()}, 0)))


def aligned(count: int) -> int:
    """So many bytes, up to the next place where a tensor may begin."""
    return -(-count // ALIGNMENT) * ALIGNMENT


def _header(tensors: Mapping[str, tuple[Any, int, int]], room: int) -> bytes:
    described = {
        name: {
            "dtype": DTYPES[_dtype(t)],
            "shape": tuple(t.shape),
            "data_offsets": [start - room, stop - room],
        }
        for name, (t, start, stop) in tensors.items()
    }
    return msgspec.json.encode({"__metadata__": {"format": "pt"}, **described})


def _dtype(tensor: Any) -> str:
    return str(tensor.dtype).removeprefix("torch.")
