"""Values to codes and back, a unit at a time, with bitsandbytes' own operators: a unit has the bits it would
have alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import torch
from bitsandbytes import functional

from loadkit_plugins.bitsandbytes.packed.layout import BLOCK, NESTED_BLOCK, Layout

__all__ = ["DATA", "empty", "pack", "quant_state", "unit_codes", "unpack"]

DATA = ""
"""The key of the codes among a parameter's tensors; the others have their companions' names."""

Tensors = Mapping[str, torch.Tensor]


def empty(layout: Layout, device: Any) -> dict[str, torch.Tensor]:
    """Tensors of a packed parameter's shapes, to be filled."""

    def make(shape: tuple[int, ...], dtype: str) -> torch.Tensor:
        return torch.empty(shape, dtype=getattr(torch, dtype), device=device)

    tensors = {DATA: make(layout.packed_shape, layout.packed_dtype)}
    return tensors | {name: make(*about) for name, about in layout.companions.items()}


@torch.no_grad()
def pack(units: Iterable[torch.Tensor], layout: Layout, device: Any) -> dict[str, torch.Tensor]:
    """Quantize the units of a parameter one after the other.

    Parameters:
        units: the values of each, in order; as many as the layout says. Each may be made when it is asked
            for, by decoding what is stored, say.
        layout: what becomes of them.
        device: where the codes are to be.

    Raises:
        ValueError: there are more or fewer units, or one has another shape.
    """
    tensors = empty(layout, device)
    done = 0
    for unit, values in enumerate(units):
        if unit >= layout.units or values.numel() != layout.count:
            raise ValueError(f"unit {unit} of {tuple(values.shape)} isn't one of {layout.stacked}")
        matrix = values.reshape(layout.unit_shape).contiguous()
        if layout.bits == 4:
            _pack_4bit(matrix, layout, tensors, unit)
        else:
            codes, scales, _ = functional.int8_vectorwise_quant(matrix.to(torch.float16))
            tensors[DATA].view(layout.stacked)[unit] = codes
            tensors["scales"][unit] = scales
        done += 1
    if done != layout.units:
        raise ValueError(f"{done} units instead of {layout.units}")
    return tensors


def _pack_4bit(matrix: torch.Tensor, layout: Layout, tensors: Tensors, unit: int) -> None:
    codes, state = functional.quantize_4bit(
        matrix,
        blocksize=BLOCK,
        compress_statistics=layout.nested,
        quant_type=layout.quant_type,
        quant_storage=getattr(torch, layout.storage),
    )
    tensors[DATA].view(layout.units, -1)[unit] = codes.view(-1)
    tensors["scales"][unit] = state.absmax
    if layout.nested:
        tensors["nested_scales"][unit] = state.state2.absmax
        tensors["nested_offset"][unit] = state.offset


def unit_codes(tensors: Tensors, layout: Layout, unit: int) -> Any:
    """One unit's codes, a view of all."""
    if layout.bits == 8:
        return tensors[DATA].view(layout.stacked)[unit]
    return tensors[DATA].view(layout.units, -1)[unit].view(-1, 1)


def quant_state(tensors: Tensors, layout: Layout, unit: int) -> functional.QuantState:
    """What bitsandbytes needs to unpack one unit of 4 bits; its tensors are views."""
    scales = tensors["scales"][unit]
    state2 = offset = None
    if layout.nested:
        nested = tensors["nested_scales"][unit]
        code = _nested_code(scales.device)
        state2 = functional.QuantState(absmax=nested, blocksize=NESTED_BLOCK, code=code, dtype=torch.float32)
        offset = tensors["nested_offset"][unit]
    return functional.QuantState(
        absmax=scales,
        shape=torch.Size(layout.unit_shape),
        code=_code(layout.quant_type, scales.device),
        blocksize=BLOCK,
        quant_type=layout.quant_type,
        dtype=getattr(torch, layout.dtype),
        offset=offset,
        state2=state2,
    )


@torch.no_grad()
def unpack(tensors: Tensors, layout: Layout, unit: int) -> Any:
    """One unit's values, a matrix in the layout's dtype."""
    codes = unit_codes(tensors, layout, unit)
    dtype = getattr(torch, layout.dtype)
    if layout.bits == 8:
        return functional.int8_vectorwise_dequant(codes, tensors["scales"][unit]).to(dtype)
    return functional.dequantize_4bit(codes, quant_state(tensors, layout, unit))


@cache
def _code(quant_type: str, device: torch.device) -> Any:
    return functional.get_4bit_type(quant_type, device=device)


@cache
def _nested_code(device: torch.device) -> Any:
    return functional.create_dynamic_map().to(device)
