"""bitsandbytes' 4-bit quantization in one pass: the same float32 operations, so the same bits.

The arithmetic is that of `bitsandbytes.backends.default.ops` (0.50) for the CPU: of each block the largest
magnitude; each value times its reciprocal (a last block that is too short divides instead); the number of
midpoints between neighbouring codes that lie below; NaN counts as above all of them. Nothing may be fused or
reordered: no fastmath here.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numba import njit

from loadkit_plugins.cpu_kernels.to_float32 import widen

__all__ = ["CHUNK", "quantize"]

CHUNK: Final = 8192
"""Values worked on at a time: with their codes they stay in a core's first-level cache."""

MAGNITUDE = np.int32(0x7FFFFFFF)
SMALLEST = np.float32(1e-38)
"""What bitsandbytes divides by at least."""


@njit(nogil=True)
def quantize(
    halves: Any,
    kind: int,
    count: int,
    blocksize: int,
    bounds: Any,
    codes: Any,
    start: int,
    stop: int,
    packed: Any,
    absmax: Any,
) -> None:
    """Quantize some blocks of a tensor.

    Parameters:
        halves: uint16[:], the tensor's memory.
        kind: BFLOAT16, FLOAT16 or FLOAT32 of `to_float32`.
        count: how many values the tensor has.
        blocksize: values in a block; even.
        bounds: float32[15], the midpoints between neighbouring codes, ascending.
        codes: uint8[16], the code of each interval between them.
        start, stop: the blocks to do; the tensor's last one may be short.
        packed: uint8[:] of the whole tensor, two codes a byte, the first one high; filled for these blocks.
        absmax: float32[:] of the whole tensor; filled for these blocks.
    """
    step = max(1, CHUNK // blocksize)
    buffer = np.empty(step * blocksize, np.float32)
    found = np.empty(step * blocksize, np.uint8)
    for first in range(start, stop, step):
        blocks = min(step, stop - first)
        begin = first * blocksize
        size = min(blocks * blocksize, count - begin)
        values = buffer[:size]
        widen(halves, kind, begin, values)
        for block in range(blocks):
            whole = values[block * blocksize : (block + 1) * blocksize]
            largest = _largest(whole)
            bottom = SMALLEST if largest < SMALLEST else largest
            if whole.size == blocksize:
                absmax[first + block] = largest
                _multiply(whole, np.float32(1.0) / bottom)
            else:
                absmax[first + block] = bottom
                _divide(whole, bottom)
        if size % 2:
            buffer[size] = np.float32(0.0)
            size += 1
        _choose(buffer[:size], bounds, codes, found[:size])
        _pack(found[:size], packed[begin // 2 : (begin + size) // 2])


@njit(nogil=True)
def _largest(values: Any) -> Any:
    """The largest magnitude. Magnitudes order like their bits, and NaN comes last."""
    bits = values.view(np.int32)
    largest = np.int32(0)
    for i in range(bits.size):
        largest = max(largest, np.int32(bits[i] & MAGNITUDE))
    return np.int32(largest).view(np.float32)


@njit(nogil=True)
def _multiply(values: Any, factor: Any) -> None:
    for i in range(values.size):
        values[i] *= factor


@njit(nogil=True)
def _divide(values: Any, divisor: Any) -> None:
    for i in range(values.size):
        values[i] /= divisor


@njit(nogil=True)
def _choose(values: Any, bounds: Any, codes: Any, found: Any) -> None:
    """The code of each value's interval. A loop over the bounds wouldn't become vector instructions."""
    b0, b1, b2, b3, b4 = bounds[0], bounds[1], bounds[2], bounds[3], bounds[4]
    b5, b6, b7, b8, b9 = bounds[5], bounds[6], bounds[7], bounds[8], bounds[9]
    b10, b11, b12, b13, b14 = bounds[10], bounds[11], bounds[12], bounds[13], bounds[14]
    c0, c1, c2, c3, c4, c5 = codes[0], codes[1], codes[2], codes[3], codes[4], codes[5]
    c6, c7, c8, c9, c10 = codes[6], codes[7], codes[8], codes[9], codes[10]
    c11, c12, c13, c14, c15 = codes[11], codes[12], codes[13], codes[14], codes[15]
    for i in range(values.size):
        value = values[i]
        code = c0
        code = code if value <= b0 else c1  # NaN is above every bound
        code = code if value <= b1 else c2
        code = code if value <= b2 else c3
        code = code if value <= b3 else c4
        code = code if value <= b4 else c5
        code = code if value <= b5 else c6
        code = code if value <= b6 else c7
        code = code if value <= b7 else c8
        code = code if value <= b8 else c9
        code = code if value <= b9 else c10
        code = code if value <= b10 else c11
        code = code if value <= b11 else c12
        code = code if value <= b12 else c13
        code = code if value <= b13 else c14
        code = code if value <= b14 else c15
        found[i] = code


@njit(nogil=True)
def _pack(found: Any, packed: Any) -> None:
    for i in range(packed.size):
        packed[i] = np.uint8(found[2 * i] << np.uint8(4)) | found[2 * i + 1]
