"""Which types of adapters compute over packed weights: what PEFT finds out in the first forward pass, if at
all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from loadkit import Adapter, Context, Plan, Problem
from loadkit.plugins import some_of

__all__ = ["CANT", "NEEDS_AUTOCAST", "check_over_packed"]

_problem = partial(Problem, "adapter", "adapter")

READS_BASE = "it computes with the base's weights, and reads the packed ones as they lie"
STARTS_FROM_BASE = "it starts from the base's weights, and reads the packed ones as they lie"
NO_LAYER = "PEFT has no layer of it over packed ones"
ROUNDED = (
    "it keeps its scales in the dtype of the packed ones, where they are rounded to 0, and nothing trains"
)
BOTH = (4, 8)

CANT: Mapping[str, tuple[tuple[int, ...], str]] = {
    "DEFT": (BOTH, READS_BASE),
    "DELORA": (BOTH, STARTS_FROM_BASE),
    "FROD": (BOTH, STARTS_FROM_BASE),
    "GLORA": (BOTH, NO_LAYER),
    "HRA": (BOTH, READS_BASE),
    "LOHA": ((4,), READS_BASE),
    "LOKR": ((4,), READS_BASE),
    "OSF": (BOTH, STARTS_FROM_BASE),
    "PEANUT": ((4,), READS_BASE),
    "PSOFT": (BOTH, STARTS_FROM_BASE),
    "SUPERTUNING": (BOTH, READS_BASE),
    "TINYLORA": (BOTH, STARTS_FROM_BASE),
    "UNILORA": (BOTH, ROUNDED),
}
"""Type to the bits of bitsandbytes over which it fails or gives noise, and why (PEFT 0.21, tried one by one:
`tests/plugins/adapter/test_over_packed.py`)."""

NEEDS_AUTOCAST: Mapping[str, tuple[int, ...]] = {
    "ADALORA": (8,),
    "HIRA": (8,),
    "IA3": BOTH,
    "PVERA": (8,),
    "RANDLORA": BOTH,
    "SHIRA": (8,),
    "VERA": (8,),
}
"""Type to the bits over which its layers mix dtypes, which autocast alone gets over: trainers have it with
`bf16` or `fp16`."""

METHOD = "bitsandbytes"


def check_over_packed(
    context: Context, plan: Plan, adapter: Adapter, config: Mapping[str, Any], targeted: list[str]
) -> Iterator[Problem]:
    """Whether the adapter's type computes over the planned quantization.

    Parameters:
        context: the facts.
        plan: the plan.
        adapter: the adapter, new or existing.
        config: its config.
        targeted: paths of the linear layers that the config names; none where that isn't known.
    """
    quantized, kind = plan.quantized, adapter.peft_type
    if quantized is None or quantized.method != METHOD or (plan.adapters and plan.adapters.dequantize):
        return
    packed = [path for path in targeted if not _left(path, quantized.skip_modules)]
    if targeted and not packed:
        return
    over = f"{quantized.bits:g}-bit weights ({plan.why('quantization').because})"
    which = f": {some_of(packed)}" if packed and config.get("target_modules") != "all-linear" else ""
    bits, reason = CANT.get(kind, ((), ""))
    if quantized.bits in bits:
        other = "" if 8 in bits else "quantize to 8 bits (load_in_8bit=True), "
        yield _problem(
            "adapter-over-packed",
            f"a {kind} adapter was asked for over {over}{which}, and PEFT 0.21 can't compute it there: {reason}",
            f"load without quantization, {other}or use LoRA, which has layers for packed weights",
        )
    elif quantized.bits in NEEDS_AUTOCAST.get(kind, ()) and plan.dtype != "float32":
        yield _problem(
            "adapter-needs-autocast",
            f"a {kind} adapter was asked for over {over}{which}: its layers there give float32 or float16, beside {plan.dtype} elsewhere",
            "train and run it under torch.autocast (bf16=True or fp16=True of the trainer does), or use LoRA",
            severity="warning",
        )


def _left(path: str, entries: tuple[str, ...]) -> bool:
    return any(f".{entry}." in f".{path}." for entry in entries)
