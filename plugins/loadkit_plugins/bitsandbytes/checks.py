"""What can't work with bitsandbytes, found before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from loadkit import Context, Plan, Problem, Quantization
from loadkit.plugins import did_you_mean
from loadkit_plugins.bitsandbytes.offloaded import check_offloaded
from loadkit_plugins.bitsandbytes.settings import (
    EIGHT_BIT,
    FIELDS,
    FOUR_BIT,
    METHOD,
    OFFLOAD,
    PACKED_PARAMETERS,
    UNSET,
    declared_options,
    is_ours,
    settings,
    twice,
)
from loadkit_plugins.bitsandbytes.stored_layers import check_stored_layers
from loadkit_plugins.stored_blocks.headers import METHODS, as_floats
from loadkit_plugins.stored_blocks.wishes import turned_back

__all__ = ["check"]

_problem = partial(Problem, "quantization", METHOD)

ENDS = ("embeddings", "head")
"""What no method of bitsandbytes' kind is expected to quantize."""

PLAIN: dict[str, type | tuple[type, ...]] = {"bool": bool, "float": (int, float)}
"""What a type of option is as plain data; of the others the choices tell."""

REGISTERED_EXPERTS = (5, 7)
"""The first transformers that runs experts by what others register in `ALL_EXPERTS_FUNCTIONS`."""

MOST_UNQUANTIZED = 0.5
"""Share of the weight bytes, embeddings and head aside, above which staying in 16 bits is a warning."""


def check(context: Context, plan: Plan) -> Sequence[Problem]:
    """Every problem of the plan's quantization that bitsandbytes or a quantized checkpoint makes."""
    return [*_fields(context), *_planned(context, plan)]


def _fields(context: Context) -> Iterator[Problem]:
    """Fields of a quantization config that transformers drops or fails over, or an option contradicts."""
    for config, spelt in twice(context.request):
        yield _problem(
            "option-twice",
            f"you gave {config} and {spelt}, which are one setting",
            f"keep {config} or {spelt}",
        )
    whole = context.request.asked("quantization_config")
    if whole is None or not is_ours(whole.value):
        return
    said = f"{'you' if whole.demanded else whole.by} gave quantization_config"
    declared = {option.name: option for option in declared_options()}
    for name, value in whole.value.items():
        option = declared.get(name)
        if name not in FIELDS:
            yield _problem(
                "unknown-field",
                f"{said}({name}={value!r}), and a config of {METHOD} has no such field{did_you_mean(name, FIELDS)}",
                f"its fields are {', '.join(f for f in FIELDS if not f.startswith('_'))}; another method's config names its quant_method",
            )
        elif option is None or value is None:
            continue
        elif option.choices and value not in option.choices:
            yield _problem(
                "bad-field",
                f"{said}({name}={value!r}){did_you_mean(str(value), option.choices)}",
                f"choose one of {', '.join(option.choices)}",
            )
        elif not isinstance(value, PLAIN.get(option.type, object)):
            yield _problem(
                "bad-field",
                f"{said}({name}={value!r}), a {type(value).__name__}; the field takes a {option.type}",
                f"{name}: {option.help}",
            )


def _planned(context: Context, plan: Plan) -> Sequence[Problem]:
    wishes = settings(context.request)
    demanded = {name: asked.value for name, asked in wishes.items() if asked.demanded}
    quantization = plan.quantization
    if quantization is not None and quantization.prequantized:
        platform = list(_platform(context, plan, quantization)) if quantization.method == METHOD else []
        if quantization.method == METHOD:
            platform += check_offloaded(plan, quantization, asked=bool(quantization.options.get(OFFLOAD)))
            platform += check_stored_layers(context, plan, quantization)
        return [*_contradictions(quantization, demanded, _not_again(context)), *platform]
    if quantization is None or quantization.method != METHOD:
        return list(_unused(demanded, quantization))
    return [
        *_both_widths(demanded),
        *_other_width(quantization, demanded),
        *_package(context),
        *_experts(context, quantization),
        *_dtype(plan, quantization),
        *_storage(context, plan, quantization),
        *_nothing(plan),
        *check_offloaded(plan, quantization, asked=OFFLOAD in wishes and bool(wishes[OFFLOAD].value)),
        *_platform(context, plan, quantization),
    ]


def _both_widths(demanded: dict[str, Any]) -> Iterator[Problem]:
    if demanded.get("load_in_4bit") and demanded.get("load_in_8bit"):
        yield _problem(
            "4bit-and-8bit", "you asked for load_in_4bit=True and load_in_8bit=True", "choose one of the two"
        )


def _other_width(quantization: Quantization, demanded: dict[str, Any]) -> Iterator[Problem]:
    others = FOUR_BIT if quantization.bits == 8 else ("llm_int8_threshold", "llm_int8_has_fp16_weight")
    wrong = [f"{name}={demanded[name]!r}" for name in others if demanded.get(name)]
    if wrong:
        other = 4 if quantization.bits == 8 else 8
        yield _problem(
            "8bit-setting-with-4bit" if other == 8 else "4bit-setting-with-8bit",
            f"you asked for {', '.join(wrong)}, which {'is' if len(wrong) == 1 else 'are'} for {other} bits, and the weights "
            f"are quantized to {quantization.bits:.0f}",
            f"leave {'it' if len(wrong) == 1 else 'them'} out, or give load_in_{other}bit=True instead",
        )


def _package(context: Context) -> Iterator[Problem]:
    if context.machine.version("bitsandbytes") is None:
        yield _problem(
            "no-bitsandbytes",
            "quantizing was asked for, and bitsandbytes isn't installed",
            "pip install bitsandbytes",
        )


def _experts(context: Context, quantization: Quantization) -> Iterator[Problem]:
    """Packed stacks are run by an implementation that transformers before 5.7 takes from nobody."""
    found = context.machine.version("transformers")
    if quantization.options.get(PACKED_PARAMETERS) and found is not None and found[:2] < REGISTERED_EXPERTS:
        yield _problem(
            "packed-experts-need-transformers",
            f"the model's experts are to be packed, which needs transformers 5.7, and {'.'.join(map(str, found))} is installed",
            "pip install 'transformers>=5.7', or load the model without quantization",
        )


def _dtype(plan: Plan, quantization: Quantization) -> Iterator[Problem]:
    if quantization.bits == 4 and plan.dtype == "float64":
        yield _problem(
            "dtype-unavailable",
            f"float64 was asked for ({plan.why('dtype').because}), and 4 bits: bitsandbytes quantizes values of 16 and 32 bits",
            "give dtype='float32', or leave the quantization out",
        )


def _storage(context: Context, plan: Plan, quantization: Quantization) -> Iterator[Problem]:
    """What shards parameters takes floating point of one dtype (bitsandbytes' and PEFT's guides to FSDP)."""
    storage = quantization.options.get("bnb_4bit_quant_storage")
    if quantization.bits == 4 and context.topology.shards_parameters and storage != plan.dtype:
        yield _problem(
            "storage-dtype-under-fsdp",
            f"bnb_4bit_quant_storage={storage!r} was asked for, but {context.topology.engine} shards the packed weights with "
            f"the others, which are {plan.dtype}",
            f"give bnb_4bit_quant_storage={plan.dtype!r}, or leave it out",
        )


def _nothing(plan: Plan) -> Iterator[Problem]:
    """What is more than multiplied with can't be packed; of that transformers says nothing, or logs it."""
    memory = plan.memory
    if memory is None or not memory.unquantized:
        return
    weights = {reason: count for reason, count in memory.unquantized.items() if reason not in ENDS}
    left = sum(weights.values())
    said = ", ".join(f"{reason} {count:,} bytes" for reason, count in weights.items())
    if not memory.quantized:
        yield _problem(
            "nothing-to-quantize",
            f"quantizing was asked for, and {plan.model_class.model_class} has no plain Linear layer for bitsandbytes to replace, and nothing else that it could pack: {said}",
            "leave out the quantization, or quantize with a method that takes them",
        )
    elif left > MOST_UNQUANTIZED * (left + memory.quantized):
        yield _problem(
            "mostly-unquantized",
            f"{left / (left + memory.quantized):.0%} of the weight bytes, embeddings and head aside, will stay unquantized ({said}): they were to stay "
            "so, or are more than multiplied with",
            "count with that memory (`loadkit plan MODEL --why memory` shows it), or choose a method that quantizes them",
            severity="warning",
        )


def _platform(context: Context, plan: Plan, quantization: Quantization) -> Iterator[Problem]:
    """What engines can't do with bitsandbytes' weights.

    Tried with transformers 5.23 and bitsandbytes 0.50: under tensor parallelism 4-bit layers fail in the
    first forward pass, as a part of a packed weight has no quant state. torch's FSDP flattens no integers
    (`_flat_param.py`, torch 2.13); the scales of 8-bit weights are attributes that a sharded copy lacks.
    """
    engine = context.topology.engine
    if context.topology.splits_layers:
        yield _problem(
            "bitsandbytes-with-tensor-parallel",
            f"{_whence(quantization)} under tensor parallelism, which would split packed weights from their constants",
            "leave out the quantization, or launch without tensor parallelism",
        )
    elif quantization.bits == 8 and context.topology.shards_parameters:
        yield _problem(
            "8bit-with-sharding",
            f"{_whence(quantization)} to 8 bits under {engine}, which shards parameters: 8-bit weights are integers, and lose their scales",
            "quantize to 4 bits (load_in_4bit=True), which can be packed in floating point, or launch with DDP, ZeRO-1 or ZeRO-2",
        )
    elif quantization.prequantized and quantization.bits == 4 and context.topology.shards_parameters:
        storage = str(quantization.options.get("bnb_4bit_quant_storage", "uint8"))
        if storage == plan.dtype:
            return
        whole = engine == "fsdp2" and storage in ("uint8", "int8")
        yield _problem(
            "stored-dtype-under-sharding",
            f"the checkpoint's 4-bit weights are packed in {storage}, and {engine} "
            + (
                "keeps integers whole on every device (accelerate 1.15), so that they aren't shared"
                if whole
                else f"shards floating point of one dtype only, here {plan.dtype}"
            ),
            f"quantize while loading, from the checkpoint that it was made from: its weights are then packed in {plan.dtype}",
            severity="warning" if whole else "error",
        )


def _whence(quantization: Quantization) -> str:
    return (
        "the checkpoint is stored quantized by bitsandbytes and was asked for"
        if quantization.prequantized
        else "quantizing with bitsandbytes was asked for"
    )


def _unused(demanded: dict[str, Any], quantization: Quantization | None) -> Iterator[Problem]:
    """Settings without the switch that they belong to would be dropped in silence."""
    own = (*FOUR_BIT, *EIGHT_BIT)
    given = [f"{name}={value!r}" for name, value in sorted(demanded.items()) if name in own]
    if not given:
        return
    how = "isn't quantized" if quantization is None else f"is quantized by {quantization.method}"
    yield _problem(
        "setting-without-quantization",
        f"you asked for {', '.join(given)}, but the model {how}",
        "add load_in_4bit=True or load_in_8bit=True, or leave them out",
    )


def _not_again(context: Context) -> str:
    """Why weights that could be quantized again, by their format, aren't; "" where their format can't be."""
    if context.checkpoint.quantization_config.get("quant_method") not in METHODS:
        return ""
    if (floats := turned_back(context)) is not None:
        given = "you" if floats.demanded else floats.by
        return f"; {given} asked for {floats.name}={floats.value!r} too, which leaves them in floating point"
    faults = as_floats(context.checkpoint).faults
    return f"; they can't be decoded to be quantized again: {faults[0]}" if faults else ""


def _contradictions(stored: Quantization, demanded: dict[str, Any], why: str) -> Iterator[Problem]:
    """A demand that a quantized checkpoint contradicts: transformers would drop it with a warning at most."""
    yield from _both_widths(demanded)
    for bits in (4, 8):
        name = f"load_in_{bits}bit"
        if name in demanded and demanded[name] != (stored.method == METHOD and stored.bits == bits):
            width = f"with {stored.bits:g} bits" if stored.bits else "with widths of its own"
            yield _contradiction(
                stored, f"{name}={demanded[name]!r}", width + (why if demanded[name] else "")
            )
    for name in (*FOUR_BIT, *EIGHT_BIT, "skip_modules"):
        field = "llm_int8_skip_modules" if name == "skip_modules" else name
        own = stored.method == METHOD
        has = stored.options.get(field, UNSET.get(field) if own else None)
        if name in demanded and (demanded[name] or None) != (has or None):
            there = f"with {field}={has!r}" if own or has is not None else f"which has no {name}"
            yield _contradiction(stored, f"{name}={demanded[name]!r}", there)


def _contradiction(stored: Quantization, asked: str, has: str) -> Problem:
    return _problem(
        "quantized-already",
        f"you asked for {asked}, but the checkpoint is stored quantized by {stored.method}, {has}",
        "leave it out to load the checkpoint as it is stored, or load the unquantized checkpoint it was made from",
    )
