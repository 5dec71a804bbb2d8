"""Quantizing beside parts on the CPU or the disk: which of them transformers leaves alone, or refuses.

As transformers 5.23's quantizers of bitsandbytes have it (`validate_environment`,
`_process_model_before_weight_loading`): a part that a device map names there stays in floating point with
`llm_int8_enable_fp32_cpu_offload`, and is an error without, unless everything is on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from loadkit import Plan, Problem, Quantization
from loadkit.plugins import some_of
from loadkit_plugins.bitsandbytes.settings import OFFLOAD

__all__ = ["check_offloaded", "offloaded"]

_problem = partial(Problem, "quantization", "bitsandbytes")

BESIDE = ("cpu", "disk")


def offloaded(plan: Plan) -> list[str]:
    """The parts that the device map puts on the CPU or the disk."""
    places = plan.placement.device_map
    return (
        sorted(m for m, device in places.items() if str(device) in BESIDE) if isinstance(places, dict) else []
    )


def check_offloaded(plan: Plan, quantization: Quantization, *, asked: bool) -> Iterator[Problem]:
    """What the device map makes of quantizing.

    Parameters:
        asked: whether the switch is on.
    """
    places = plan.placement.device_map
    if not isinstance(places, dict) or not places:
        return
    beside = offloaded(plan)
    said = f"quantizing to {quantization.bits:g} bits was asked for ({plan.why('quantization').because})"
    if asked and ("" in beside or len(beside) == len(places)):  # an empty path is an end of every path
        yield _problem(
            "nothing-to-quantize",
            f"{said} with {OFFLOAD}=True, by which every part on the CPU or the disk stays in floating point, and device_map={places!r} puts all of "
            "them there: nothing would be quantized",
            f"leave {OFFLOAD} out: bitsandbytes quantizes on the CPU too",
        )
    elif asked and beside:
        yield _problem(
            "offloaded-unquantized",
            f"{said}, and {some_of(beside)} on the CPU or the disk will stay in floating point ({OFFLOAD}=True)",
            "count with that memory there",
            severity="note",
        )
    elif beside and {str(device) for device in places.values()} != {"cpu"}:
        yield _problem(
            "quantized-offload",
            f"{said}, and device_map={places!r} puts {some_of(beside)} on the CPU or the disk beside other devices, which transformers refuses",
            f"add {OFFLOAD}=True to keep those parts in floating point, or place everything on one device",
        )
