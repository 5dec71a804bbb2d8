"""What a stored format takes in memory, in bytes, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from loadkit import Context, Packed, Plan, Quantization, Weight
from loadkit.plugins import FLOATS, ITEM_SIZES
from loadkit_plugins.prequantized.method import Method
from loadkit_plugins.prequantized.settings import method_of

__all__ = ["estimate", "grown"]

BYTES = {"int32": 4, "u32": 4, "int64": 8, "i16": 2, "u16": 2}
"""Bytes of one value of the wider types that packed weights come in."""


def estimate(context: Context, plan: Plan, weights: Sequence[Weight]) -> Mapping[str, Packed] | None:
    """The weights that are stored in a format of their own, to their bytes; None for other quantizations."""
    quantization = plan.quantization
    if quantization is None or not quantization.prequantized or quantization.method == "bitsandbytes":
        return None
    method = method_of(quantization)
    if method is None:
        return None
    if quantization.packed:
        return {w.name: made for w in weights if (made := _kept(w, method)) is not None}
    return {w.name: made for w in weights if (made := _back(w, method, quantization, plan.dtype)) is not None}


def grown(plan: Plan, weights: Sequence[Weight]) -> int:
    """Bytes of the base once all of it is turned back."""
    quantization = plan.quantization
    method = None if quantization is None else method_of(quantization)
    if quantization is None or method is None:
        return 0
    made = [_back(w, method, quantization, plan.dtype) for w in weights]
    return sum(
        w.count * ITEM_SIZES[plan.dtype] if m is None else m.data for w, m in zip(weights, made, strict=True)
    )


def _kept(weight: Weight, method: Method) -> Packed | None:
    if weight.name.endswith(method.vanishing or ("scale", "scales", "zeros", "_zero_point", "g_idx")):
        return Packed(data=0, constants=weight.nbytes)
    return None if weight.dtype in FLOATS else Packed(data=weight.nbytes, dtype=weight.dtype)


def _back(weight: Weight, method: Method, quantization: Quantization, dtype: str) -> Packed | None:
    """Scales are worked into the weights; several values of four bits come out of one byte."""
    if weight.name.endswith(method.vanishing):
        return Packed(data=0, dtype=dtype)
    if weight.dtype in FLOATS:
        return None
    return Packed(data=weight.count * _values(weight, method, quantization) * ITEM_SIZES[dtype], dtype=dtype)


def _values(weight: Weight, method: Method, quantization: Quantization) -> int:
    """How many weights one value of the file stands for."""
    for end, several in method.packing.items():
        if weight.name.endswith(end):
            bits = quantization.bits or 8
            return several or round(8 * BYTES.get(weight.dtype, 1) / bits)
    # DeepSeek stores experts as two values of four bits in what is called an int8.
    four = quantization.options.get("expert_dtype") == "fp4" and weight.dtype == "int8"
    return 2 if four or weight.dtype == "f4" else 1
