"""What a GGUF file says before its tensors' bytes: metadata, and the name, shape and type of every tensor.

The layout is llama.cpp's (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), versions 2 and 3,
little-endian. Nothing is believed: counts and lengths are held against the bytes that there are, and no more
than `MAX_HEADER_BYTES` are read.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from loadkit.errors import Problem
from loadkit.facts.checkpoint.checkpoint import TensorHeader
from loadkit.facts.checkpoint.source import checkpoint_problem

__all__ = ["MAX_HEADER_BYTES", "GgufHeader", "read_gguf_header"]

MAX_HEADER_BYTES = 200_000_000
"""The longest header that is read: vocabularies of a few hundred thousand tokens and their merges take a
tenth of it."""

FIRST_BYTES = 1 << 20
MAGIC = b"GGUF"
VERSIONS = (2, 3)

SCALARS: Mapping[int, str] = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
"""A metadata value's type to how it is packed; 8 is a string, 9 an array."""
STRING, ARRAY = 8, 9

TYPES: Mapping[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2), 28: ("F64", 1, 8),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8),
    2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 36),
    10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136), 29: ("IQ1_M", 256, 56),
    39: ("MXFP4", 32, 17),
}  # fmt: skip
"""A tensor's type to its name, the values of a block, and the block's bytes."""


class GgufHeader(NamedTuple):
    """The header: metadata by key (of arrays of strings only the vocabulary), and tensors by name."""

    metadata: dict[str, Any]
    tensors: dict[str, TensorHeader]


class _TooShortError(Exception):
    """More bytes are needed than have been read."""


class _WrongError(Exception):
    """The bytes aren't a header."""


def read_gguf_header(
    file: str, size: int, read: Callable[[int, int], bytes | Problem]
) -> GgufHeader | Problem:
    """Read the header of a file, a megabyte at first and then as much as it takes.

    Parameters:
        file: its name, for messages.
        size: its bytes; -1 where unknown.
        read: gives bytes from a start to a stop, fewer where the file ends before.
    """
    start, wanted = b"", FIRST_BYTES
    while True:
        more = read(len(start), wanted)
        if isinstance(more, Problem):
            return more
        start += more
        try:
            return _parse(file, start, size)
        except _TooShortError:
            if len(start) < wanted or wanted >= MAX_HEADER_BYTES:
                return _bad(file, f"it ends within its header, after {len(start)} bytes")
        except (_WrongError, UnicodeDecodeError) as fault:
            return _bad(file, str(fault))
        wanted = min(wanted * 4, MAX_HEADER_BYTES)


def _parse(file: str, data: bytes, size: int) -> GgufHeader:
    if data[:4] != MAGIC:
        raise _WrongError(f"it starts with {data[:4]!r} instead of {MAGIC!r}")
    reader = _Reader(data, 4)
    version = reader.number("<I")
    if version not in VERSIONS:
        raise _WrongError(f"it has version {version}; this reads {' and '.join(map(str, VERSIONS))}")
    count, entries = reader.number("<Q"), reader.number("<Q")
    metadata: dict[str, Any] = {}
    for _ in range(entries):
        key = reader.text()
        metadata[key] = reader.value(reader.number("<I"), keep=key == "tokenizer.ggml.tokens")
    tensors: dict[str, TensorHeader] = {}
    end = 0
    for _ in range(count):
        name, sides = reader.text(), reader.number("<I")
        if sides > 8:
            raise _WrongError(f"tensor {name!r} has {sides} dimensions")
        shape = tuple(reader.number("<Q") for _ in range(sides))[::-1]
        kind, offset = reader.number("<I"), reader.number("<Q")
        if kind not in TYPES:
            raise _WrongError(f"tensor {name!r} has type {kind}, which isn't known")
        called, values, block = TYPES[kind]
        nbytes = math.prod(shape) // values * block
        tensors[name] = TensorHeader(called, shape, nbytes, file)
        end = max(end, offset + nbytes)
    align = metadata.get("general.alignment", 32)
    begin = -(-reader.at // align) * align if isinstance(align, int) and align > 0 else reader.at
    if tensors and 0 <= size < begin + end:
        raise _WrongError(f"it has {size} bytes, and its header accounts for {begin + end}: it is cut short")
    return GgufHeader(metadata, tensors)


class _Reader:
    """Values one after the other."""

    def __init__(self, data: bytes, at: int) -> None:
        self.data, self.at = data, at

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def take(self, count: int) -> bytes:
        if count > MAX_HEADER_BYTES:
            raise _WrongError(f"it announces {count} bytes for one value")
        if self.at + count > len(self.data):
            raise _TooShortError
        self.at += count
        return self.data[self.at - count : self.at]

    def text(self) -> str:
        return self.take(self.number("<Q")).decode()

    def value(self, kind: int, keep: bool = False) -> Any:
        """One value; of an array of strings that nobody needs, how many there are."""
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            raise _WrongError(f"it has a value of type {kind}, which isn't known")
        inside, count = self.number("<I"), self.number("<Q")
        if inside in SCALARS:
            layout = f"<{count}{SCALARS[inside][1]}" if count < MAX_HEADER_BYTES else ""
            if not layout:
                raise _WrongError(f"it announces an array of {count} values")
            return list(struct.unpack(layout, self.take(struct.calcsize(layout))))
        if inside != STRING:
            raise _WrongError(f"it has an array of type {inside}, which isn't known")
        if not keep:
            for _ in range(count):
                self.take(self.number("<Q"))
            return count
        return [self.text() for _ in range(count)]


def _bad(file: str, fault: str) -> Problem:
    return checkpoint_problem(
        "bad-gguf",
        f"{file} can't be read as GGUF: {fault}",
        "download it again; files of several parts are merged with llama.cpp's gguf-split --merge",
    )
