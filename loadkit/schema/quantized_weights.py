"""What quantized weights take, and what they consist of once they are there."""

from __future__ import annotations

from typing import Any

import msgspec

__all__ = ["Opened", "Packed", "Unit"]


class Packed(msgspec.Struct, frozen=True, kw_only=True):
    """What a quantized weight takes.

    Parameters:
        data: bytes of its codes.
        constants: bytes of its scales and code books.
        dtype: what the codes are packed in, by torch's name: engines that shard parameters take floats only.
        decoded: it isn't quantized: it is stored so, and `data` are the bytes of its values in `dtype`; none
            for a scale, which is gone by then.
    """

    data: int
    constants: int = 0
    dtype: str = "uint8"
    decoded: bool = False


class Opened(msgspec.Struct, frozen=True, kw_only=True):
    """What a quantized parameter consists of. It lives while loading only, and is never stored.

    Parameters:
        data: the `torch.Tensor` of its codes.
        constants: scales, zero points, code books: none twice, and none that shares the data's storage.
        count: how many weights it stands for.
        shape: of the weights that it stands for; () where that isn't known.
        units: how many matrices of that shape's last axes were quantized one by one, as a stack's experts.
    """

    data: Any
    constants: tuple[Any, ...] = ()
    count: int
    shape: tuple[int, ...] = ()
    units: int = 1


class Unit(msgspec.Struct, frozen=True):
    """Rows of one of the matrices that a quantized parameter consists of.

    Parameters:
        parameter: the `torch.nn.Parameter`, quantized.
        index: which of its matrices.
        start: the first row, as the matrix's values lie.
    """

    parameter: Any
    index: int
    start: int
