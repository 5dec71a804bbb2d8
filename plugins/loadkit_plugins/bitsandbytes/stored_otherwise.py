"""Checkpoints that are stored in another format: which can be quantized again, and what that costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from loadkit import Context, Packed, Weight
from loadkit.plugins import FLOATS, ITEM_SIZES
from loadkit_plugins.stored_blocks.headers import METHODS, Decoded, as_floats
from loadkit_plugins.stored_blocks.wishes import quantized_again

__all__ = ["ERRORS", "as_the_files_name_it", "cost", "decodable", "in_floats", "left_in_floats"]

ERRORS: Mapping[str, float] = {
    "nf4": 9.2, "fp4": 12.2, "int8": 0.9,
    "fp8": 2.7, "fp8 nf4": 9.6, "fp8 fp4": 12.4, "fp8 int8": 2.8,
    "mxfp8": 2.7, "mxfp8 nf4": 9.6, "mxfp8 fp4": 12.5, "mxfp8 int8": 2.8,
    "mxfp4": 11.5, "mxfp4 nf4": 13.9, "mxfp4 fp4": 14.6, "mxfp4 int8": 11.5,
}  # fmt: skip
"""The root mean square of the error over that of the weights, in percent: of a format alone, and of one after
the other with bfloat16 between. Measured on 4096 × 4096 numbers of a normal distribution, fp8 in blocks of
128 × 128; a test measures it again."""


def decodable(context: Context) -> Decoded | None:
    """The checkpoint as if it were stored in floating point, where its weights are to be quantized again and
    can be; else None."""
    method = context.checkpoint.quantization_config.get("quant_method")
    if method not in METHODS or quantized_again(context) is None:
        return None
    found = as_floats(context.checkpoint)
    return found if found.able else None


def in_floats(context: Context, decoded: Decoded) -> Context:
    """The facts with such a checkpoint."""
    return msgspec.structs.replace(context, checkpoint=decoded.checkpoint)


def left_in_floats(decoded: Decoded, weights: Sequence[Weight]) -> tuple[str, ...]:
    """The ends of paths of layers that are stored in floating point beside others in codes: whoever made the
    checkpoint left them so.

    Parameters:
        decoded: the checkpoint in floating point.
        weights: of that.
    """
    layers = [w for w in weights if w.kind in ("linear", "linear subclass", "experts") and len(w.shape) > 1]
    taken = {_end(w) for w in layers if w.name in decoded.coded}
    left = [w for w in layers if w.name not in decoded.coded]
    return tuple(dict.fromkeys(_from_layer(w) if _end(w) in taken else _end(w) for w in left))


def _end(weight: Weight) -> str:
    """The last two parts of a module's path but for numbers; of single experts, of the module of them all."""
    parts = [part for part in weight.module.split(".") if not part.isdigit()]
    if "experts" in parts:
        parts = parts[: parts.index("experts") + 1]
    return ".".join(parts[-2:])


def _from_layer(weight: Weight) -> str:
    """The path from the list of layers on, as loading may rename what comes before."""
    parts = weight.module.split(".")
    if "experts" in parts:
        parts = parts[: parts.index("experts") + 1]
    number = next((at for at, part in enumerate(parts) if part.isdigit()), 1)
    return ".".join(parts[max(number - 1, 0) :])


def cost(method: str, target: str) -> str:
    """What it costs to quantize again, in words.

    Parameters:
        method: that the checkpoint is stored by.
        target: "nf4", "fp4" or "int8".
    """
    both = ERRORS[f"{method} {target}"]
    return (
        f"decoded from {method} one weight at a time and quantized again: every weight is rounded twice, which on normally "
        f"distributed ones is an error of {both:g} %, where {target} alone has {ERRORS[target]:g} % and {method} alone {ERRORS[method]:g} %"
    )


def as_the_files_name_it(
    weights: Sequence[Weight], decoded: Decoded, packed: Mapping[str, Packed], dtype: str
) -> dict[str, Packed]:
    """What becomes of the files' tensors, from what becomes of them as if they were in floating point.

    Parameters:
        weights: the files'.
        decoded: the checkpoint in floating point.
        packed: by names in floating point, those that are quantized.
        dtype: of the load.
    """
    found = {}
    for weight in weights:
        plain = decoded.names.get(weight.name)
        if plain is None:
            found[weight.name] = Packed(data=0, dtype=dtype, decoded=True)
        elif plain in packed:
            found[weight.name] = packed[plain]
        elif weight.dtype not in FLOATS:
            header = decoded.checkpoint.tensors[plain]
            values = header.nbytes // 2
            found[weight.name] = Packed(data=values * ITEM_SIZES[dtype], dtype=dtype, decoded=True)
    return found
