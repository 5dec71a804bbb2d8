"""What a checkpoint that is stored quantized says of itself, whatever its method. Not a plugin itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loadkit import Checkpoint, Quantization

__all__ = ["stored"]

WIDTHS: Mapping[str, float] = {
    "fp8": 8,
    "fbgemm_fp8": 8,
    "finegrained_fp8": 8,
    "mxfp4": 4,
    "nvfp4": 4,
    "bitnet": 2,
}
"""Bits a weight of the methods whose name says it."""


def stored(checkpoint: Checkpoint) -> Quantization | None:
    """The quantization that the checkpoint's config states; None for an unquantized one."""
    config = checkpoint.quantization_config
    if not config:
        return None
    default = "bitsandbytes" if config.get("load_in_4bit") or config.get("load_in_8bit") else "unknown"
    method = str(config.get("quant_method", default))
    return Quantization(
        method=method,
        bits=_bits(method, config),
        options={k: v for k, v in sorted(config.items()) if k != "quant_method" and not k.startswith("_")},
        prequantized=True,
    )


def _bits(method: str, config: Mapping[str, Any]) -> float:
    """Bits a weight; 0 where the config doesn't tell."""
    if config.get("load_in_4bit"):
        return 4
    if config.get("load_in_8bit"):
        return 8
    for key in ("bits", "w_bit", "weight_bits", "nbits"):
        if isinstance(config.get(key), int | float):
            return float(config[key])
    return WIDTHS.get(method, 0)
