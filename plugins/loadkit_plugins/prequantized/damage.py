"""Weights in codes and their scales, held against each other by the headers of the files."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from loadkit import Context, Plan, Problem, Quantization
from loadkit.plugins import size
from loadkit_plugins.prequantized.methods import SOURCE
from loadkit_plugins.stored_blocks.headers import METHODS, as_floats, uneven

__all__ = ["stored_wrongly"]

_problem = partial(Problem, "quantization", "prequantized")


def stored_wrongly(context: Context, plan: Plan, quantization: Quantization) -> Iterator[Problem]:
    """What no load could read right, of a format whose weights loadkit knows how to decode."""
    if quantization.method not in METHODS:
        return
    checkpoint = context.checkpoint
    damage = as_floats(checkpoint).damage
    if damage:
        more = f", and {len(damage) - 1} more like it" if len(damage) > 1 else ""
        yield _problem(
            "format-damaged",
            f"the checkpoint was asked for, and is stored quantized by {quantization.method}, and {damage[0]}{more}",
            "fetch the files again, or make them again from the unquantized checkpoint",
        )
    elif not quantization.packed and (odd := list(uneven(checkpoint))):
        name, shape, block = odd[0]
        room = size(2 * sum(a * b for _, (a, b), _ in odd))
        yield _problem(
            "format-uneven-blocks",
            f"weights stored by {quantization.method} are turned back here, and {len(odd)} of them ({room} in 16 bits) don't consist of whole blocks, "
            f"such as {name} of {shape[0]} × {shape[1]} in blocks of {block[0]} × {block[1]}: {SOURCE} takes all blocks of a side "
            "for equally long, so that it fails or multiplies with the wrong scales",
            "quantize it again with load_in_4bit=True or load_in_8bit=True, for which loadkit decodes it itself; or load it where it stays as it is stored",
        )
