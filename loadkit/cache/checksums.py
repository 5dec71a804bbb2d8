"""Checksums of what a safetensors file holds, tensor by tensor, on several cores."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

__all__ = ["HEADER", "WORKERS", "checksum", "checksums", "file_checksums", "running_checksum"]

HEADER = ""
"""The name under which the checksum of a file's header stands; no tensor is called so."""

WORKERS = 4
"""Threads at most: two of them are as fast as the memory of small machines."""


def checksum(data: Any) -> str:
    """XXH3 (128 bits) of something that has bytes, in hexadecimal: against damage, not against forgery."""
    import xxhash

    return str(xxhash.xxh3_128_hexdigest(data))


def running_checksum() -> Any:
    """The same of what comes in pieces: `update` takes each, `hexdigest` gives it."""
    import xxhash

    return xxhash.xxh3_128()


def checksums(parts: Mapping[str, Callable[[], Any]], *, workers: int = WORKERS) -> dict[str, str]:
    """The checksum of each part, several at a time.

    Parameters:
        parts: name to what gives its bytes.
        workers: how many at a time, at most. With 1 no thread is started: none can be as an interpreter ends.
    """
    if workers == 1:
        return {name: checksum(give()) for name, give in parts.items()}
    with ThreadPoolExecutor(min(workers, os.cpu_count() or 1)) as pool:
        return dict(zip(parts, pool.map(lambda give: checksum(give()), parts.values()), strict=True))


def file_checksums(path: str | os.PathLike[str], *, workers: int = WORKERS) -> dict[str, str]:
    """The checksum of every tensor in a safetensors file, and of its header.

    Raises:
        OSError: it can't be read.
        ValueError: it isn't a safetensors file.
    """
    with Path(path).open("rb") as stream:
        if os.fstat(stream.fileno()).st_size < 8:
            raise ValueError(f"{path} is too short for a safetensors file")
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as whole:
            body = 8 + int.from_bytes(whole[:8], "little")
            if body > len(whole):
                raise ValueError(f"{path} is shorter than its header says")
            try:
                header: dict[str, Any] = msgspec.json.decode(whole[8:body])
                ranges = {
                    name: (body + about["data_offsets"][0], body + about["data_offsets"][1])
                    for name, about in header.items()
                    if name != "__metadata__"
                }
            except (msgspec.DecodeError, AttributeError, KeyError, TypeError, IndexError) as error:
                raise ValueError(f"the header of {path} is damaged: {error}") from error
            if any(not body <= start <= stop <= len(whole) for start, stop in ranges.values()):
                raise ValueError(f"{path} is shorter than its header says")

            parts = {HEADER: (0, body), **ranges}
            return checksums(
                {name: partial(whole.__getitem__, slice(*limits)) for name, limits in parts.items()},
                workers=workers,
            )
