"""dtypes by their names in torch: which are floating point, their sizes, and safetensors' names."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = [
    "FLOATS",
    "ITEM_SIZES",
    "SAFETENSORS_FLOATS",
    "SAFETENSORS_NAMES",
    "SHORT_DTYPES",
    "canonical_dtype",
]

ITEM_SIZES: Mapping[str, int] = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of one value, for the dtypes that loading casts to."""

FLOATS = tuple(ITEM_SIZES)
"""The dtypes that weights are loaded in."""

SAFETENSORS_FLOATS: Mapping[str, str] = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}
"""Safetensors' names of floating-point dtypes to torch's."""

SAFETENSORS_NAMES: Mapping[str, str] = {
    **SAFETENSORS_FLOATS,
    "U8": "uint8",
    "I8": "int8",
    "I64": "int64",
    "I32": "int32",
    "BOOL": "bool",
}
"""Safetensors' names of dtypes to torch's."""

SHORT_DTYPES = {
    "bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32", "float": "float32",
    "fp64": "float64", "double": "float64",
}  # fmt: skip
"""Other spellings of dtypes that people write."""


def canonical_dtype(name: str) -> str:
    """A dtype's name in torch: "bf16" and "torch.bfloat16" are "bfloat16"."""
    bare = name.removeprefix("torch.")
    return SHORT_DTYPES.get(bare, bare)
