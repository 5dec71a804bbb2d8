"""Write the merged checkpoint's weight files, a piece of a tensor at a time, taking down what was written."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from loadkit.errors import LoadError
from loadkit.facts.checkpoint.safetensors_header import PREFIX_BYTES
from loadkit.merging.arithmetic import RowMerge, bands, by_rows
from loadkit.merging.outline import OutFile, OutTensor
from loadkit.merging.stored_files import torch_dtype
from loadkit.merging.values import Values

__all__ = ["Writer", "merged_by_rows"]

_moving = threading.Lock()

PIECE = 1 << 20
"""Bytes that are copied at a time."""


class Writer:
    """Writes files, several of their tensors at a time.

    Parameters:
        values: the tensors.
        pool: the threads that work on tensors which need nothing of each other.
        wrote: called with the bytes of each piece.
    """

    def __init__(self, values: Values, pool: ThreadPoolExecutor, wrote: Callable[[int], None]) -> None:
        self._values, self._pool, self._wrote = values, pool, wrote
        self._pieces: dict[str, Any] = {}

    def write(self, file: OutFile, path: Path) -> dict[str, str]:
        """Write a file.

        Returns:
            Tensor to the checksum of its bytes, as they were worked out.

        Raises:
            OSError: the disk won't have it.
            LoadError: a merged tensor isn't finite.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb", buffering=0) as stream:
            place = stream.fileno()
            if hasattr(os, "posix_fallocate"):
                with suppress(
                    OSError
                ):  # some file systems can't; writing tells what is wrong with the others
                    os.posix_fallocate(place, 0, file.nbytes)
            at = PREFIX_BYTES + len(file.header)
            _put(place, len(file.header).to_bytes(PREFIX_BYTES, "little") + file.header, 0)
            sums, running = {}, {}
            for tensor in file.tensors:
                if self._alone(tensor):
                    running[tensor.name] = self._pool.submit(self._write, tensor, place, at)
                at += tensor.nbytes
            at = PREFIX_BYTES + len(file.header)
            try:
                for tensor in file.tensors:
                    if tensor.name not in running:
                        sums[tensor.name] = self._write(tensor, place, at)
                    at += tensor.nbytes
                return sums | {name: each.result() for name, each in running.items()}
            finally:
                for each in running.values():  # none may write to a file that is closed
                    each.cancel() or each.exception()

    def _alone(self, tensor: OutTensor) -> bool:
        """Whether a tensor is worked on without what is kept for the others."""
        return tensor.how == "copied" or merged_by_rows(tensor, self._values)

    def _write(self, tensor: OutTensor, place: int, at: int) -> str:
        import torch
        import xxhash

        digest = xxhash.xxh3_128()
        with torch.no_grad():
            for piece in self._bytes(tensor):
                digest.update(piece)
                _put(place, piece, at)
                at += len(piece)
                self._wrote(len(piece))
        return str(digest.hexdigest())

    def _bytes(self, tensor: OutTensor) -> Iterator[memoryview]:
        files = self._values.files
        if tensor.how == "copied" and files.header(tensor.name).dtype == tensor.dtype:
            whole = files[tensor.name].bytes_of(tensor.name)
            for start in range(0, len(whole), PIECE):
                yield whole[start : start + PIECE]
            return
        dtype, narrow = torch_dtype(tensor.dtype), None
        for rows in self._rows(tensor):
            if tensor.how == "merged":
                _refuse_endless(rows, dtype, tensor, self._values.adapter)
            if narrow is None or narrow.shape != rows.shape:
                narrow = rows.new_empty(rows.shape, dtype=dtype)
            yield _as_bytes(narrow.copy_(rows))

    def _rows(self, tensor: OutTensor) -> Iterator[Any]:
        """A tensor's values, whole or some rows at a time."""
        values, adapter = self._values, self._values.adapter
        if tensor.how == "copied":
            yield from _pieces(values.files[tensor.name].tensor(tensor.name))
        elif tensor.group is not None and tensor.group.converter is not None:
            yield self._piece(tensor)
        elif merged_by_rows(tensor, values):
            move, parts = values.ties.moves[tensor.target], bands(tensor.shape)
            most = max((stop - start for start, stop in parts), default=0)
            base, merge = values.start(move), RowMerge(move, adapter, tensor.shape[1], most)
            for start, stop in parts:
                yield merge(base, start, stop)
        else:
            yield from _pieces(values.final(tensor.target))

    def _piece(self, tensor: OutTensor) -> Any:
        """One of the tensors that the files have a group of the model's in; the others are kept until their
        turn."""
        assert tensor.group is not None
        if tensor.name not in self._pieces:
            final = {target: self._values.final(target) for target in tensor.group.targets}
            self._values.forget()
            self._pieces |= self._values.layout.to_stored(final)
        return self._pieces.pop(tensor.name)


def merged_by_rows(tensor: OutTensor, values: Values) -> bool:
    """Whether a tensor is merged some rows at a time, without the others."""
    move = values.ties.moves.get(tensor.target)
    if tensor.how != "merged" or move is None or not by_rows(move, values.adapter):
        return False
    if tensor.target in values.more_rows or tensor.target in values.ties.apart:
        return False
    stored = tensor.group is not None and tensor.group.converter is None
    return stored and values.files.header(tensor.name).dtype != "F64"


def _pieces(tensor: Any) -> Iterator[Any]:
    """Some rows at a time, so that a copy in another dtype is small."""
    if tensor.ndim < 2:
        yield tensor
        return
    for start, stop in bands(tuple(tensor.shape)):
        yield tensor[start:stop]


def _as_bytes(tensor: Any) -> memoryview:
    import torch

    flat = tensor.contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy()) if len(flat) else memoryview(b"")


def _put(place: int, piece: bytes | memoryview, at: int) -> None:
    """Write all of it, at a place in the file."""
    left = memoryview(piece)
    while left:
        count = _write_at(place, left, at)
        left, at = left[count:], at + count


def _write_at(place: int, piece: memoryview, at: int) -> int:
    if hasattr(os, "pwrite"):
        return os.pwrite(place, piece, at)
    with _moving:  # Windows: a file has one position, and several threads write
        os.lseek(place, at, os.SEEK_SET)
        return os.write(place, piece)


def _refuse_endless(rows: Any, dtype: Any, about: OutTensor, adapter: str) -> None:
    import torch

    if not rows.numel():
        return
    least, most = torch.aminmax(rows)
    if not (float(least) >= torch.finfo(dtype).min and float(most) <= torch.finfo(dtype).max):
        raise LoadError(
            f"{about.name} isn't finite in {about.dtype} once the adapter ({adapter}) is merged into it\n"
            "    fix: if the base itself is finite, write a wider dtype: dtype='float32', or 'bfloat16' for a base in float16"
        )
