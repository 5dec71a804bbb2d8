"""Codes and scales to values: the bits that transformers 5.23's own operations give, without its copies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from loadkit_plugins.stored_blocks.headers import block_of

__all__ = ["decode", "decode_blocks", "decode_matrix", "is_coded", "of_two"]

AT_ONCE = 2**20
"""About how many values are in float32 at a time."""

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""The values of four bits."""


def is_coded(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds codes: floats of one byte, or integers."""
    return tensor.element_size() == 1 or not tensor.is_floating_point()


@torch.no_grad()
def decode(codes: torch.Tensor, scales: torch.Tensor, block: Any, dtype: torch.dtype) -> torch.Tensor:
    """The values of a weight in fp8 or mxfp8, or of experts in four bits beside such.

    Parameters:
        codes: of one byte each; integers hold two values.
        scales: one for each block; bytes are powers of two.
        block: `weight_block_size` of the config.
        dtype: of the values; they are multiplied in float32.

    Raises:
        ValueError: the scales aren't this weight's.
    """
    shape = (*codes.shape[:-1], codes.shape[-1] * (2 if of_two(codes) else 1))
    sides = block_of(tuple(shape), tuple(scales.shape), block)
    if sides is None:
        raise ValueError(f"scales of {tuple(scales.shape)} don't belong to a weight of {tuple(shape)}")
    if len(shape) == 2:
        return decode_matrix(codes, scales, sides, dtype)
    values = torch.empty(shape, dtype=dtype, device=codes.device)
    each = scales.reshape(1).expand(len(codes)) if scales.numel() == 1 else scales
    for one, its_codes, its_scales in zip(values, codes, each, strict=True):
        one[:] = decode_matrix(its_codes, its_scales, sides, dtype)
    return values


def of_two(codes: torch.Tensor) -> bool:
    """Whether each code is of two values."""
    return not codes.is_floating_point() or codes.dtype == getattr(torch, "float4_e2m1fn_x2", None)


@torch.no_grad()
def decode_matrix(
    codes: torch.Tensor, scales: torch.Tensor, sides: tuple[int, int], dtype: torch.dtype
) -> torch.Tensor:
    """The values of one matrix, or of its first rows, in blocks of so many rows and columns."""
    rows, columns = codes.shape[0], codes.shape[1] * (2 if of_two(codes) else 1)
    values = torch.empty((rows, columns), dtype=dtype, device=codes.device)
    factors = _factors(scales)
    factors = factors.reshape(1, 1) if factors.numel() == 1 else factors
    high, wide = sides
    step = max(1, AT_ONCE // max(columns, 1))
    for start in range(0, rows, step):
        some = slice(start, min(start + step, rows))
        found = _pairs(codes[some]) if of_two(codes) else codes[some].to(torch.float32)
        of_rows = torch.arange(some.start, some.stop, device=codes.device) // high
        by = factors[of_rows].repeat_interleave(wide, dim=1)[:, :columns]
        values[some] = found.mul_(by)
    return values


def _factors(scales: torch.Tensor) -> torch.Tensor:
    found = scales.to(torch.float32)
    return (found - 127.0).exp2() if scales.dtype == torch.uint8 else found


def _pairs(codes: torch.Tensor) -> torch.Tensor:
    """Two values of four bits in a byte, the lower ones first."""
    table = torch.tensor(E2M1, dtype=torch.float32, device=codes.device)
    octets = codes.contiguous().view(torch.uint8)
    pairs = torch.stack([table[(octets & 15).int()], table[(octets >> 4).int()]], dim=-1)
    return pairs.reshape(*codes.shape[:-1], -1)


def decode_blocks(blocks: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """The experts of a stack in mxfp4, one at a time, each inputs × outputs as GPT-OSS has them.

    Parameters:
        blocks: experts × outputs × blocks × bytes.
        scales: experts × outputs × blocks.
        dtype: of the values.
    """
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    for at in range(len(blocks)):
        one = slice(at, at + 1)
        yield convert_moe_packed_tensors(blocks[one], scales[one], dtype=dtype)[0]
