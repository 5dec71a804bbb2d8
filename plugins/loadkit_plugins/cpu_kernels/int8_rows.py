"""bitsandbytes' int8 row-wise quantization of float16 weights in one pass: the same operations and bits.

The arithmetic is that of `bitsandbytes.backends.default.ops` (0.50) with a threshold of 0: a row's largest
magnitude, its reciprocal times 127, each value times that, rounded half to even. torch turns NaN into 0
there, so a row of zeros, or one that isn't finite, is all 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from loadkit_plugins.cpu_kernels.four_bit import _largest
from loadkit_plugins.cpu_kernels.to_float32 import FLOAT16, widen

__all__ = ["quantize_rows"]

ROUNDER = np.float32(1.5 * 2**23)
"""Added to a float32 below 2^22, it leaves the value rounded half to even in the low bits."""


@njit(nogil=True)
def quantize_rows(halves: Any, width: int, start: int, stop: int, rounded: Any, stats: Any) -> None:
    """Quantize some rows of a float16 matrix.

    Parameters:
        halves: uint16[:], the matrix's memory.
        width: values in a row.
        start, stop: the rows to do.
        rounded: int8[:] of the whole matrix; filled for these rows.
        stats: float32[:], the largest magnitude of each row; filled for these rows.
    """
    values = np.empty(width, np.float32)
    for row in range(start, stop):
        widen(halves, FLOAT16, row * width, values)
        largest = _largest(values)
        stats[row] = largest
        target = rounded[row * width : (row + 1) * width]
        if largest > 0 and largest < np.inf:
            _round(values, np.float32(np.float32(1.0) / largest) * np.float32(127.0), target)
        else:
            for i in range(target.size):
                target[i] = np.int8(0)


@njit(nogil=True)
def _round(values: Any, factor: Any, rounded: Any) -> None:
    for i in range(values.size):
        shifted = np.float32(values[i] * factor) + ROUNDER
        rounded[i] = np.int8(np.float32(shifted).view(np.int32) & np.int32(0xFF))
