"""Values of 16 and 32 bits as float32, exactly. bfloat16 and float16 come as bits: numba has neither."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numba import njit

__all__ = ["BFLOAT16", "FLOAT16", "FLOAT32", "widen"]

BFLOAT16: Final = 0
FLOAT16: Final = 1
FLOAT32: Final = 2

SIGN = np.uint32(0x8000)
MAGNITUDE = np.uint32(0x7FFF)
EXPONENT = np.uint32(0x7C00)
REBIASED = np.uint32((127 - 15) << 23)
"""What a float16's exponent lacks to be a float32's."""
SUBNORMAL = np.float32(2.0**-24)
"""What one step of a subnormal float16 is worth."""


@njit(nogil=True)
def widen(halves: Any, kind: int, start: int, values: Any) -> None:
    """Read values as float32.

    Parameters:
        halves: uint16[:], the whole tensor's memory; two of them make a float32.
        kind: BFLOAT16, FLOAT16 or FLOAT32.
        start: the first value's index.
        values: float32[:], filled.
    """
    if kind == FLOAT32:
        whole = halves[2 * start : 2 * (start + values.size)].view(np.float32)
        for i in range(values.size):
            values[i] = whole[i]
        return
    bits = halves[start : start + values.size]
    if kind == BFLOAT16:
        for i in range(values.size):
            values[i] = np.uint32(np.uint32(bits[i]) << np.uint32(16)).view(np.float32)
        return
    for i in range(values.size):
        half = np.uint32(bits[i])
        exponent = half & EXPONENT
        shifted = np.uint32((half & MAGNITUDE) << np.uint32(13))
        wide = np.uint32(shifted + REBIASED)
        wide = np.uint32(wide + REBIASED) if exponent == EXPONENT else wide
        small = np.float32(np.int32(half & MAGNITUDE)) * SUBNORMAL
        magnitude = np.float32(small).view(np.uint32) if exponent == np.uint32(0) else wide
        values[i] = np.uint32(magnitude | np.uint32((half & SIGN) << np.uint32(16))).view(np.float32)
