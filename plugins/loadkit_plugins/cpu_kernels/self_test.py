"""Whether a kernel gives bitsandbytes' own bits, for small tensors with all that is easy to get wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from loadkit_plugins.cpu_kernels.operators import FOUR_BIT, KINDS

__all__ = ["first_difference"]

BLOCK = 64


def first_difference(operator: str, kernel: Callable[..., Any], own: Callable[..., Any]) -> str:
    """Compare a kernel with bitsandbytes' own, bit for bit.

    Parameters:
        operator: its name without "bitsandbytes::".
        kernel, own: what to compare.

    Returns:
        The case in which they differ; "" where there is none.
    """
    cases = _four_bit() if operator == FOUR_BIT else _rows()
    return next((name for name, given in cases if not _same(kernel(*given), own(*given))), "")


def _four_bit() -> Iterator[tuple[str, tuple[Any, ...]]]:
    for dtype in KINDS:
        for size in (8 * BLOCK, 8 * BLOCK + 7):
            weights = _values(size).to(dtype)
            for quant_type in ("nf4", "fp4"):
                yield f"{quant_type} of {size} {dtype} values", (weights, BLOCK, quant_type, torch.uint8)


def _rows() -> Iterator[tuple[str, tuple[Any, ...]]]:
    for width in (BLOCK, BLOCK + 7):
        yield f"rows of {width} values", (_values(8 * width).to(torch.float16).view(8, width), 0.0)


def _values(size: int) -> Any:
    """A block or a row each of ordinary values, ties, zeros of both signs, subnormal numbers, infinities."""
    values = torch.linspace(-1, 1, size, dtype=torch.float32) ** 3 * 0.02
    part = size // 8
    values[part] = 1.0
    values[part + 1 : 2 * part] = torch.arange(part - 1) * 2.0**-8 - 0.125
    values[2 * part : 3 * part] = 0.0
    values[2 * part : 3 * part : 2] = -0.0
    values[3 * part : 4 * part] *= 2.0**-12
    values[4 * part : 5 * part] *= 1e-37
    values[5 * part] = float("inf")
    return values


def _same(one: Any, other: Any) -> bool:
    return len(one) == len(other) and all(_same_tensor(a, b) for a, b in zip(one, other, strict=True))


def _same_tensor(one: Any, other: Any) -> bool:
    if one is None or other is None:
        return one is other
    if one.dtype != other.dtype or one.shape != other.shape or one.stride() != other.stride():
        return False
    return bool(torch.equal(one.view(torch.uint8), other.view(torch.uint8)))
