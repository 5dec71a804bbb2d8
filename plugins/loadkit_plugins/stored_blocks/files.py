"""A checkpoint's files as they would be in floating point: tensors are decoded when rows of them are read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from loadkit_plugins.stored_blocks.decoding import decode_blocks, decode_matrix
from loadkit_plugins.stored_blocks.headers import Coded, beside, block_of, coded_tensors

__all__ = ["decoded_files"]


class _Header(NamedTuple):
    dtype: str
    shape: tuple[int, ...]


def decoded_files(files: Mapping[str, Any], stored: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Every tensor by its name in floating point, to what reads it.

    Parameters:
        files: name to open file, as `loadkit_decode_stored` is given them.
        stored: of the checkpoint's quantization config, what `headers.fields_of` gives.
        dtype: of the load.
    """
    slices = {name: file.get_slice(name) for name, file in files.items()}
    headers = {name: _Header(each.get_dtype(), tuple(each.get_shape())) for name, each in slices.items()}
    coded = {each.codes: each for each in coded_tensors(headers, stored) if not each.fault}
    gone = {each.scales for each in coded.values()}
    found: dict[str, Any] = {}
    for name, file in files.items():
        if name in coded:
            each = coded[name]
            kind = _Stack if each.name != name else _Matrix if len(each.shape) == 2 else _Matrices
            found[each.name] = _File(file, kind(each, slices[name], slices[each.scales], stored, dtype))
        elif name not in gone and not beside(name):
            found[name] = file
    return found


class _File:
    """Gives one tensor's slice."""

    def __init__(self, file: Any, decoded: Any) -> None:
        self.file, self._decoded = file, decoded

    def get_slice(self, name: str) -> Any:
        return self._decoded


class _Slice:
    """A tensor in codes, read as safetensors' slices are: by rows, or by an index and rows."""

    def __init__(
        self, coded: Coded, codes: Any, scales: Any, stored: Mapping[str, Any], dtype: torch.dtype
    ) -> None:
        self.shape, self.codes, self.scales, self.dtype = coded.shape, codes, scales, dtype
        grid = tuple(scales.get_shape())
        self.sides = block_of(coded.shape, grid, stored.get("weight_block_size")) or (1, 1)

    def get_shape(self) -> list[int]:
        return list(self.shape)

    def __getitem__(self, key: Any) -> torch.Tensor:
        first, *others = key if isinstance(key, tuple) else (key,)
        if first is Ellipsis:
            first = slice(None)
        found = self._first(first, *others[:1]) if isinstance(first, int) else self._rows(first)
        if isinstance(first, int):
            return found[tuple(others[1:])] if len(others) > 1 else found
        return found[(slice(None), *others)] if others else found

    def _rows(self, rows: slice) -> torch.Tensor:
        raise NotImplementedError

    def _first(self, index: int, rows: Any = slice(None)) -> torch.Tensor:
        """Rows of one matrix of a stack."""
        return self._rows(slice(index, index + 1))[0][rows]


class _Matrix(_Slice):
    """fp8 and mxfp8. In float32, from which any dtype is rounded once."""

    def _rows(self, rows: slice) -> torch.Tensor:
        start, stop, _ = rows.indices(self.shape[0])
        high = self.sides[0]
        begin = start // high * high
        scales = self.scales[...]
        if scales.ndim > 1 and scales.shape[0] > 1:
            scales = scales[begin // high : -(-stop // high)]
        found = decode_matrix(self.codes[begin:stop], scales, self.sides, torch.float32)
        return found[start - begin :]


class _Matrices(_Slice):
    """fp8 in stacks."""

    def _rows(self, rows: slice) -> torch.Tensor:
        return torch.stack([self._first(index) for index in range(*rows.indices(self.shape[0]))])

    def _first(self, index: int, rows: Any = slice(None)) -> torch.Tensor:
        _, stop, _ = rows.indices(self.shape[1])
        one = len(self.scales.get_shape()) < len(self.shape) or self.scales.get_shape()[0] != self.shape[0]
        scales = self.scales[...] if one else self.scales[index, : -(-stop // self.sides[0])]
        return decode_matrix(self.codes[index, :stop], scales, self.sides, torch.float32)[rows]


class _Stack(_Slice):
    """mxfp4: a row is an input, of which a block has several."""

    def _rows(self, rows: slice) -> torch.Tensor:
        return torch.stack([self._first(index) for index in range(*rows.indices(self.shape[0]))])

    def _first(self, index: int, rows: Any = slice(None)) -> torch.Tensor:
        _, stop, _ = rows.indices(self.shape[1])
        blocks = -(-stop * self.codes.get_shape()[2] // self.shape[1])
        one = slice(index, index + 1)
        (found,) = decode_blocks(self.codes[one, :, :blocks], self.scales[one, :, :blocks], self.dtype)
        return found[rows]
