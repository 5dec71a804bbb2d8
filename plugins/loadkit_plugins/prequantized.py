"""prequantized: a checkpoint that is stored quantized is loaded as it is stored, whatever its method.

Which method that is, the file says: one rule for all, without the plugins that quantize. Those look after
checkpoints of their own method: what of their options contradicts one, what it takes, what came of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loadkit import Checkpoint, Claim, Context, ModelClass, Plan, Problem, Quantization, Strength, hookimpl

WIDTHS = {"fp8": 8, "fbgemm_fp8": 8, "finegrained_fp8": 8, "mxfp4": 4, "nvfp4": 4, "bitnet": 2}
"""Bits a weight of the methods whose name says it."""


@hookimpl
def loadkit_choose_quantization(
    context: Context, architecture: ModelClass, dtype: str
) -> Claim[Quantization | None] | None:
    already = stored(context.checkpoint)
    if already is None:
        return None
    because = f"the checkpoint is stored quantized ({already.method}); what it fixes can't be chosen again"
    return Claim(value=already, because=because, strength=Strength.YOU)


@hookimpl
def loadkit_check_plan(context: Context, plan: Plan) -> Sequence[Problem]:
    """A config that says something else than the files: nothing of it would be handed on."""
    asked, decided = context.request.asked("quantization_config"), plan.quantization
    if asked is None or not asked.demanded or decided is None or not decided.prequantized:
        return []
    method = asked.value.get("quant_method")
    if method != decided.method or method == "bitsandbytes":
        return []  # the core checks other methods; bitsandbytes' plugin knows which fields are mere defaults
    other = [f"{k}={v!r}" for k, v in sorted(asked.value.items()) if _says(k, v, decided.options)]
    if not other:
        return []
    said = (
        f"you gave a quantization_config with {', '.join(other)}, and the checkpoint is stored quantized by "
    )
    said += f"{decided.method} without that"
    fix = "leave it out to load the checkpoint as it is stored, or load the unquantized checkpoint it was made from"
    return [Problem("quantization", "prequantized", "quantized-already", said, fix)]


def _says(name: str, value: Any, options: Mapping[str, Any]) -> bool:
    """Whether a field says something that the files don't."""
    silent = name == "quant_method" or name.startswith("_") or value is None
    return not silent and options.get(name) != value


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
