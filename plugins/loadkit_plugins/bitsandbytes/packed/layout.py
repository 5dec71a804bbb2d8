"""How a parameter is packed, in numbers: its units, what lies beside it, and their shapes. No torch here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["BLOCK", "FIRST_AXIS", "NESTED_BLOCK", "Layout"]

BLOCK, NESTED_BLOCK = 64, 256
"""Weights that share a scale, and scales that share one: bitsandbytes' defaults, which transformers keeps."""

FIRST_AXIS = "0"
"""Stands in a plan for the number of units, where the parameter's first axis counts them."""

ITEM_SIZES: Mapping[str, int] = {"uint8": 1, "int8": 1, "bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How one parameter is packed.

    Parameters:
        shape: of its values, as its class made it.
        units: how many matrices it consists of: the experts of a stack, one for a single matrix.
        bits: 4 or 8.
        dtype: of the values that are unpacked, by torch's name.
        compute_dtype: of products with them; "" for `dtype`.
        quant_type: of 4 bits: nf4 or fp4.
        nested: whether the scales of 4 bits are quantized too.
        storage: the dtype that 4-bit codes are packed in.
    """

    shape: tuple[int, ...]
    units: int
    bits: int
    dtype: str
    compute_dtype: str = ""
    quant_type: str = "nf4"
    nested: bool = False
    storage: str = "uint8"

    @property
    def unit_shape(self) -> tuple[int, int]:
        """One unit's rows and columns, as they lie in memory."""
        columns = self.shape[-1]
        return math.prod(self.shape) // self.units // columns, columns

    @property
    def count(self) -> int:
        """How many values a unit has."""
        return math.prod(self.unit_shape)

    @property
    def stacked(self) -> tuple[int, ...]:
        """The shape with the units as its first axis: what flat stacks are viewed as."""
        return (self.units, *self.unit_shape)

    @property
    def blocks(self) -> int:
        """How many blocks a unit of 4 bits has."""
        return math.ceil(self.count / BLOCK)

    @property
    def packed_shape(self) -> tuple[int, ...]:
        """The shape of the codes: 4 bits as bitsandbytes' layers have them, 8 bits as the values."""
        if self.bits == 8:
            return self.shape
        return self.units * self.unit_items, 1

    @property
    def packed_dtype(self) -> str:
        """The dtype of the codes."""
        return self.storage if self.bits == 4 else "int8"

    @property
    def unit_items(self) -> int:
        """How many items of the storage dtype hold a unit's 4-bit codes."""
        return math.ceil(math.ceil(self.count / 2) / ITEM_SIZES[self.storage])

    @property
    def companions(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """What lies beside the codes: name to shape and dtype."""
        if self.bits == 8:
            return {"scales": ((self.units, self.unit_shape[0]), "float32")}
        if not self.nested:
            return {"scales": ((self.units, self.blocks), "float32")}
        return {
            "scales": ((self.units, self.blocks), "uint8"),
            "nested_scales": ((self.units, math.ceil(self.blocks / NESTED_BLOCK)), "float32"),
            "nested_offset": ((self.units,), "float32"),
        }

    @property
    def data_bytes(self) -> int:
        """The bytes of the codes."""
        return math.prod(self.packed_shape) * ITEM_SIZES[self.packed_dtype]

    @property
    def companion_bytes(self) -> int:
        """The bytes of what lies beside them."""
        return sum(math.prod(shape) * ITEM_SIZES[dtype] for shape, dtype in self.companions.values())
