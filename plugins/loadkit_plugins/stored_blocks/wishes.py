"""Whether a checkpoint's weights are to be decoded and quantized again, as far as the request says."""

from __future__ import annotations

from collections.abc import Iterator

from loadkit import Asked, Context

__all__ = ["quantized_again", "turned_back"]

WIDTHS = ("load_in_4bit", "load_in_8bit")


def quantized_again(context: Context) -> Asked | None:
    """The strongest wish for 4 or 8 bits, where none as strong asks for floating point; None without one."""
    widths = sorted(_widths(context), key=lambda asked: -asked.strength.rank)
    if not widths:
        return None
    floats = turned_back(context)
    return None if floats is not None and floats.strength.rank >= widths[0].strength.rank else widths[0]


def turned_back(context: Context) -> Asked | None:
    """The strongest wish that what is stored be turned back into floating point; None without one."""
    whole, named = context.request.asked("dequantize"), context.request.asked("dequantize_stored")
    method = context.checkpoint.quantization_config.get("quant_method")
    wishes = [whole] if whole is not None and whole.value else []
    wishes += [named] if named is not None and method in named.value else []
    return max(wishes, key=lambda asked: asked.strength.rank, default=None)


def _widths(context: Context) -> Iterator[Asked]:
    for name in WIDTHS:
        asked = context.request.asked(name)
        if asked is not None and asked.value:
            yield asked
    whole = context.request.asked("quantization_config")
    if whole is not None and any(whole.value.get(name) for name in WIDTHS):
        yield whole
