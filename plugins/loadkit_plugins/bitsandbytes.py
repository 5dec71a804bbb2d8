"""bitsandbytes: 4-bit (nf4, fp4, double quantization) and 8-bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loadkit import (
    Asked,
    Claim,
    Context,
    Finding,
    ModelClass,
    Opened,
    Option,
    Packed,
    Plan,
    Problem,
    Quantization,
    Request,
    Weight,
    hookimpl,
)
from loadkit_plugins.bitsandbytes_known import left_alone

METHOD = "bitsandbytes"
FOUR_BIT = (
    "bnb_4bit_quant_type",
    "bnb_4bit_use_double_quant",
    "bnb_4bit_compute_dtype",
    "bnb_4bit_quant_storage",
)
EIGHT_BIT = ("llm_int8_threshold", "llm_int8_enable_fp32_cpu_offload", "llm_int8_has_fp16_weight")
UNSET: Mapping[str, Any] = {
    "bnb_4bit_quant_type": "fp4",
    "bnb_4bit_compute_dtype": "float32",
    "bnb_4bit_quant_storage": "uint8",
    "llm_int8_threshold": 6.0,
}
"""What a BitsAndBytesConfig holds for the width that it isn't about: nobody asked for these."""
DTYPES = ("bfloat16", "float16", "float32")


@hookimpl
def loadkit_options() -> Sequence[Option]:
    def option(name: str, kind: str, line: str, **more: Any) -> Option:
        return Option(name=name, type=kind, help=line, stage="quantization", **more)

    return [
        option("load_in_4bit", "bool", "quantize to 4 bits with bitsandbytes"),
        option("load_in_8bit", "bool", "quantize to 8 bits with bitsandbytes"),
        option(
            "bnb_4bit_quant_type", "str", "4-bit code: nf4 (the default here) or fp4", choices=("nf4", "fp4")
        ),
        option(
            "bnb_4bit_use_double_quant",
            "bool",
            "quantize the 4-bit constants too",
            aliases=("use_bnb_nested_quant", "double_quant"),
        ),
        option(
            "bnb_4bit_compute_dtype",
            "str",
            "dtype of 4-bit arithmetic; by default the dtype of the weights",
            choices=DTYPES,
        ),
        option(
            "bnb_4bit_quant_storage",
            "str",
            "dtype that 4-bit data is packed in; by default uint8, under FSDP the dtype of the weights",
            choices=("uint8", "int8", *DTYPES),
        ),
        option("llm_int8_threshold", "float", "8-bit: activations above it are computed in 16 bits"),
        option("llm_int8_enable_fp32_cpu_offload", "bool", "8-bit: allow parts on the CPU, in float32"),
        option("llm_int8_has_fp16_weight", "bool", "8-bit: keep 16-bit main weights"),
    ]


@hookimpl
def loadkit_choose_quantization(
    context: Context, architecture: ModelClass, dtype: str
) -> Sequence[Claim[Quantization | None]]:
    if context.checkpoint.quantization_config:
        return []  # what is stored quantized can't be quantized again; the check says so
    wishes = settings(context.request)
    bits = _bits(wishes)
    if bits is None:
        return []
    if bits.name == "none":
        return [Claim(value=None, because=bits.because, strength=bits.strength)]
    four = bits.name == "load_in_4bit"
    options = _four_bit(wishes, dtype, context) if four else _eight_bit(wishes)
    skip = (*wishes["skip_modules"].value,) if "skip_modules" in wishes else ()
    registered = context.registered.skip_modules if context.registered else ()
    known = left_alone(context, architecture, 4 if four else 8)
    value = Quantization(
        method=METHOD,
        bits=4 if four else 8,
        options=options,
        skip_modules=tuple(dict.fromkeys((*skip, *registered, *known))),
    )
    because = _because(bits, wishes, options, context)
    for reason in dict.fromkeys(known.values()):
        because += f"; {', '.join(k for k, r in known.items() if r == reason)} stays as it is: {reason}"
    if architecture.task.endswith("classification"):
        because += "; the classification head stays as it is"
    return [Claim(value=value, because=because, strength=bits.strength)]


@hookimpl
def loadkit_estimate_weights(
    context: Context, plan: Plan, weights: Sequence[Weight]
) -> Mapping[str, Packed] | None:
    from loadkit_plugins.bitsandbytes_memory import estimate

    return estimate(context, plan, weights)


@hookimpl
def loadkit_check_plan(context: Context, plan: Plan) -> Sequence[Problem]:
    from loadkit_plugins.bitsandbytes_checks import check

    return check(context, plan)


@hookimpl
def loadkit_build_quantization_config(quantization: Quantization, skip_modules: Sequence[str] | None) -> Any:
    if quantization.method != METHOD:
        return None
    from transformers import BitsAndBytesConfig

    _say_once("bitsandbytes.autograd._functions")
    return BitsAndBytesConfig(
        **quantization.options, llm_int8_skip_modules=None if skip_modules is None else list(skip_modules)
    )


@hookimpl
def loadkit_dequantize(plan: Plan, model: Any) -> Any:
    if plan.quantization is None or plan.quantization.method != METHOD:
        return None
    import torch

    return model.dequantize(dtype=getattr(torch, plan.dtype))


@hookimpl
def loadkit_compare_tensor(plan: Plan, module: Any, parameter: Any, stored: Any) -> str | None:
    from loadkit_plugins.bitsandbytes_audit import compare

    if getattr(getattr(module, "source_cls", None), "__name__", "") == "Conv1D":
        return None  # GPT-2's layers are stored transposed
    return compare(plan, parameter, stored)


@hookimpl
def loadkit_open_parameter(parameter: Any) -> Opened | None:
    from loadkit_plugins.bitsandbytes_audit import opened

    return opened(parameter)


@hookimpl
def loadkit_workarounds(plan: Plan) -> Sequence[str]:
    if plan.quantization is None or plan.quantization.method != METHOD or not plan.preparation.kbit:
        return []
    return [
        "4-bit layers are kept from repacking their weights for inference (bitsandbytes 0.50, AVX512-BF16)"
    ]


@hookimpl
def loadkit_audit_model(plan: Plan, model: Any) -> Sequence[Finding]:
    from loadkit_plugins.bitsandbytes_audit import audit

    return audit(plan, model)


def _say_once(logger: str) -> None:
    """Let a logger say each thing once: 8-bit layers tell with every product that their inputs are cast (bitsandbytes 0.50)."""
    import logging

    seen: set[str] = set()

    def once(record: logging.LogRecord) -> bool:
        new = record.msg not in seen
        seen.add(str(record.msg))
        return new

    found = logging.getLogger(logger)
    if not any(getattr(f, "__name__", "") == once.__name__ for f in found.filters):
        found.addFilter(once)


def settings(request: Request) -> dict[str, Asked]:
    """Every quantization setting in force: an option of its own, or a field of `quantization_config`."""
    names = ("load_in_4bit", "load_in_8bit", *FOUR_BIT, *EIGHT_BIT, "skip_modules")
    found = {name: asked for name in names if (asked := request.asked(name))}
    whole = request.asked("quantization_config")
    if whole is None or whole.value.get("quant_method", METHOD) != METHOD:
        return found
    other_width = EIGHT_BIT if whole.value.get("load_in_4bit") else FOUR_BIT
    for field, value in whole.value.items():
        name = "skip_modules" if field == "llm_int8_skip_modules" else field
        if name not in names or value is None or value is False:
            continue
        if name in other_width and value == UNSET.get(name):
            continue
        if name not in found or found[name].strength.rank < whole.strength.rank:
            found[name] = Asked(name=name, value=value, by=whole.by, strength=whole.strength)
    return found


def _bits(wishes: Mapping[str, Asked]) -> Asked | None:
    """Which of the two widths is asked for most strongly; named "none" where both are spoken against."""
    both = [wishes[name] for name in ("load_in_4bit", "load_in_8bit") if name in wishes]
    if not both:
        return None
    top = max((asked.strength for asked in both), key=lambda s: s.rank)
    strongest = [asked for asked in both if asked.strength is top]
    for asked in strongest:
        if asked.value:
            return asked
    weaker = [asked for asked in both if asked.value and asked not in strongest]
    if weaker and all(asked.name != weaker[0].name for asked in strongest):
        return weaker[0]  # load_in_8bit=False says nothing against a profile's 4 bits
    first = strongest[0]
    return Asked(name="none", value=None, by=first.by, strength=top)


def _four_bit(wishes: Mapping[str, Asked], dtype: str, context: Context) -> dict[str, Any]:
    def wish(name: str, default: Any) -> Any:
        return wishes[name].value if name in wishes else default

    storage = dtype if context.topology.engine in ("fsdp", "fsdp2") else "uint8"
    return {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": wish("bnb_4bit_quant_type", "nf4"),
        "bnb_4bit_use_double_quant": wish("bnb_4bit_use_double_quant", False),
        "bnb_4bit_compute_dtype": wish("bnb_4bit_compute_dtype", dtype),
        "bnb_4bit_quant_storage": wish("bnb_4bit_quant_storage", storage),
    }


def _eight_bit(wishes: Mapping[str, Asked]) -> dict[str, Any]:
    return {"load_in_8bit": True, **{name: wishes[name].value for name in EIGHT_BIT if name in wishes}}


def _because(bits: Asked, wishes: Mapping[str, Asked], options: Mapping[str, Any], context: Context) -> str:
    parts = [bits.because]
    if bits.name == "load_in_4bit":
        if "bnb_4bit_quant_type" not in wishes:
            parts.append("nf4 fits normally distributed weights better than transformers' default fp4")
        if "bnb_4bit_compute_dtype" not in wishes:
            parts.append("computes in the dtype of the weights")
        if context.topology.engine in ("fsdp", "fsdp2"):
            parts.append(f"{context.topology.engine} shards it, so it is packed in the weights' dtype")
    else:
        dropped = [w.name for name in FOUR_BIT if (w := wishes.get(name)) and not w.demanded and w.value]
        if dropped:
            parts.append(f"the profile's {', '.join(dropped)} is for 4 bits only")
    return "; ".join(parts)
