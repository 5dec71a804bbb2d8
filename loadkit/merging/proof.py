"""Read the merged files back, and hold every tensor against what it must be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from loadkit.cache.checksums import checksum
from loadkit.errors import Finding
from loadkit.merging.arithmetic import merge_rows, terms
from loadkit.merging.outline import OutFile, OutTensor
from loadkit.merging.stored_files import StoredFile
from loadkit.merging.values import Values
from loadkit.merging.writer import merged_by_rows

__all__ = ["prove"]

BANDS = 3
ROWS = 8
"""How many bands of rows are worked out again, and how many rows each has."""

NOISE = 8
"""Last bits of float32 by which two ways to add up one sum may differ."""


def prove(file: OutFile, path: Path, sums: Mapping[str, str], values: Values) -> Iterator[Finding]:
    """Read a file back: every tensor that isn't what was worked out, or isn't its base and its delta.

    The checksum of a tensor that was copied is that of the base's own bytes. One that was merged some rows at
    a time is held against PEFT's own merge besides, in bands at its beginning, its middle and its end; any
    other comes from PEFT's own merge.

    Parameters:
        sums: tensor to the checksum of the bytes that were worked out.
    """
    found = StoredFile(path, file.name)
    if found.header != file.header:
        yield _finding(f"{file.name} has another header than was planned", file.name, "another one")
        return
    for tensor in file.tensors:
        if checksum(found.bytes_of(tensor.name)) != sums[tensor.name]:
            yield _finding(f"{tensor.name} isn't on the disk as it was written", "its bytes", "others")
        elif merged_by_rows(tensor, values) and (gap := _gap(tensor, found, values)):
            yield _finding(f"{tensor.name} isn't its base and its delta", "what PEFT's merge gives", gap)


def _finding(message: str, planned: str, effective: str) -> Finding:
    return Finding(
        "merge", "loadkit", "merged-otherwise", message, planned, effective,
        remedy="merge again; if it comes again, check the disk and the memory of this machine",
    )  # fmt: skip


def _gap(tensor: OutTensor, found: StoredFile, values: Values) -> str:
    """How far bands of rows are from PEFT's merge of them; "" where they are as near as the dtype has it.

    A product's last bit in float32 may depend on how many rows it is worked out for, so it isn't counted.
    """
    import torch

    move = values.ties.moves[tensor.target]
    start, merged, count = values.start(move), found.tensor(tensor.name), tensor.shape[0]
    about = torch.finfo(merged.dtype)
    for band in range(BANDS):
        first = max(0, (count - ROWS) * band // (BANDS - 1))
        stop = min(first + ROWS, count)
        wanted = merge_rows(move, values.adapter, start, first, stop)
        off = (merged[first:stop].double() - wanted.double()).abs()
        rounding = wanted.abs() * (about.eps * 0.51) + about.smallest_normal * about.eps
        noise = terms(move, values.adapter, start, first, stop) * (NOISE * torch.finfo(torch.float32).eps)
        if bool((off > rounding + noise).any()):
            return f"rows {first} to {stop} are off by up to {float(off.max()):.3g}"
    return ""
