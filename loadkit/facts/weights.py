"""Headers and indexes of safetensors files: what the tensors are, without reading them.

The format: 8 bytes of header length (little endian), the header as JSON, the data
(https://github.com/huggingface/safetensors, "Format").
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import msgspec

from loadkit.facts.checkpoint import TensorHeader

__all__ = ["HeaderError", "read_header", "read_index"]

LARGEST_HEADER = 100_000_000
"""Bytes; the format's own limit."""

BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "F64": 64,
    "I64": 64,
    "U64": 64,
    "C64": 64,
}
"""Bits an element, by safetensors' names of dtypes."""


class HeaderError(ValueError):
    """A header or an index that can't be trusted; `code` is the problem's code."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        super().__init__(message)


class _Tensor(msgspec.Struct):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def read_header(read: Callable[[int, int], bytes], size: int, file: str) -> dict[str, TensorHeader]:
    """Read the header of one safetensors file.

    Parameters:
        read: start and stop to those bytes of the file (fewer at its end).
        size: the file's size in bytes.
        file: its name in the checkpoint, for the headers and for messages.

    Returns:
        Tensor name to header.

    Raises:
        HeaderError: the file is shorter than its header says, or the header isn't a sound one.
    """
    start = read(0, 8)
    if len(start) < 8:
        raise HeaderError("truncated-weights", f"{file} has {size} bytes, too few for a safetensors file")
    length = int.from_bytes(start, "little")
    if length > LARGEST_HEADER:
        raise HeaderError(
            "bad-header", f"{file} announces a header of {length} bytes: it isn't a safetensors file"
        )
    if 8 + length > size:
        raise HeaderError(
            "truncated-weights", f"{file} has {size} bytes, and its header alone should have {length}"
        )
    try:
        raw = msgspec.json.decode(read(8, 8 + length), type=dict[str, Any])
        raw.pop("__metadata__", None)
        tensors = msgspec.convert(raw, dict[str, _Tensor])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise HeaderError("bad-header", f"{file} has a damaged header: {error}") from error
    end = 8 + length + max((t.data_offsets[1] for t in tensors.values()), default=0)
    for name, tensor in tensors.items():
        _check(file, name, tensor)
    if end > size:
        raise HeaderError(
            "truncated-weights",
            f"{file} has {size} bytes, and its header describes {end}: {end - size} are missing",
        )
    return {
        name: TensorHeader(t.dtype, t.shape, t.data_offsets[1] - t.data_offsets[0], file)
        for name, t in tensors.items()
    }


def _check(file: str, name: str, tensor: _Tensor) -> None:
    start, stop = tensor.data_offsets
    bits = BITS.get(tensor.dtype)
    if start < 0 or stop < start or any(n < 0 for n in tensor.shape):
        raise HeaderError(
            "bad-header", f"{file} places tensor {name!r} at impossible offsets {start} to {stop}"
        )
    if bits is not None and math.prod(tensor.shape) * bits != (stop - start) * 8:
        raise HeaderError(
            "bad-header",
            f"{file} gives tensor {name!r} {stop - start} bytes, but {tensor.dtype} of shape {list(tensor.shape)} "
            f"takes {math.prod(tensor.shape) * bits // 8}",
        )


def read_index(content: bytes, file: str) -> dict[str, str]:
    """Read an index of sharded weights: tensor name to shard.

    Raises:
        HeaderError: it isn't one, or a shard's path leads out of the checkpoint.
    """
    try:
        weight_map = msgspec.convert(
            msgspec.json.decode(content, type=dict[str, Any]).get("weight_map"), dict[str, str]
        )
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise HeaderError("bad-json", f"{file} isn't an index of weights: {error}") from error
    for shard in sorted(set(weight_map.values())):
        parts = shard.replace("\\", "/").split("/")
        if shard.startswith("/") or ".." in parts or ":" in parts[0] or not shard:
            raise HeaderError(
                "path-escape", f"{file} names the shard {shard!r}, which leads out of the checkpoint"
            )
    return weight_map
