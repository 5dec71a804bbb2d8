"""Safetensors files as they lie on the disk: mapped, so that a tensor is a view of its file and takes no
memory."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from loadkit.errors import LoadError, Problem
from loadkit.facts.checkpoint.checkpoint import TensorHeader
from loadkit.facts.checkpoint.safetensors_header import PREFIX_BYTES, header_bytes, parse_header
from loadkit.schema.dtypes import SAFETENSORS_NAMES

__all__ = ["Place", "StoredFile", "StoredFiles", "torch_dtype"]


class Place(NamedTuple):
    """Where a tensor lies in its file: from one byte to another, and what it is."""

    start: int
    stop: int
    header: TensorHeader


class StoredFile:
    """One safetensors file, mapped.

    Parameters:
        path: of the file.
        name: what it is called in the checkpoint.

    Raises:
        LoadError: it isn't a safetensors file, or can't be read.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        self.places: dict[str, Place] = {}
        try:
            with path.open("rb") as stream:
                size = path.stat().st_size
                length = header_bytes(name, stream.read(PREFIX_BYTES), size)
                header = b"" if isinstance(length, Problem) else stream.read(length)
                self._mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY) if size else None
        except OSError as error:
            raise LoadError(f"{str(path)!r} can't be read: {error.strerror or error}") from error
        found = length if isinstance(length, Problem) else parse_header(name, header, size)
        if isinstance(found, Problem):
            raise LoadError(f"{found.message}\n    fix: {found.remedy}")
        self.header = header
        metadata = msgspec.json.decode(header).get("__metadata__") or {}
        self.metadata: dict[str, str] = metadata
        at = PREFIX_BYTES + len(header)
        for tensor, about in found.items():
            self.places[tensor] = Place(at, at + about.nbytes, about)
            at += about.nbytes

    def bytes_of(self, tensor: str) -> memoryview:
        """The bytes of a tensor, in the file."""
        start, stop, _ = self.places[tensor]
        return memoryview(b"") if self._mapped is None else memoryview(self._mapped)[start:stop]

    def tensor(self, name: str) -> Any:
        """A tensor as a view of the file: nothing of it is in memory until it is read."""
        import torch

        start, stop, about = self.places[name]
        dtype = torch_dtype(about.dtype)
        if start == stop:
            return torch.empty(about.shape, dtype=dtype)
        count = (stop - start) // dtype.itemsize
        return torch.frombuffer(self._mapped, dtype=dtype, count=count, offset=start).reshape(about.shape)


class StoredFiles:
    """The weight files of a checkpoint.

    Parameters:
        paths: name in the checkpoint to where it lies.
        index: tensor to the name of the file that serves it, where an index says so.

    `homes` is that for every tensor.
    """

    def __init__(self, paths: Mapping[str, Path], index: Mapping[str, str]) -> None:
        self.files = {name: StoredFile(path, name) for name, path in paths.items()}
        self.homes = {tensor: name for name, file in self.files.items() for tensor in file.places}
        self.homes |= {tensor: os.path.normpath(index[tensor]) for tensor in self.homes if tensor in index}

    def __getitem__(self, tensor: str) -> StoredFile:
        return self.files[self.homes[tensor]]

    def header(self, tensor: str) -> TensorHeader:
        """What the file says of a tensor."""
        return self[tensor].places[tensor].header

    def tensors(self, names: Iterable[str]) -> dict[str, Any]:
        """Several tensors, as views of their files."""
        return {name: self[name].tensor(name) for name in names}


def torch_dtype(name: str) -> Any:
    """The torch dtype of safetensors' name for one.

    Raises:
        LoadError: torch has none.
    """
    import torch

    found = getattr(torch, SAFETENSORS_NAMES.get(name) or MORE.get(name, ""), None)
    if found is None:
        raise LoadError(f"tensors of dtype {name} can't be read by torch {torch.__version__}")
    return found


MORE = {"I16": "int16", "U16": "uint16", "U32": "uint32", "U64": "uint64", "C64": "complex64"}
"""Those that weights seldom have."""
