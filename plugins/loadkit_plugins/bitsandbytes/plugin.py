"""bitsandbytes: 4-bit (nf4, fp4, double quantization) and 8-bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

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
    Reading,
    Weight,
    hookimpl,
)
from loadkit.plugins import some_of
from loadkit_plugins.bitsandbytes.packed_parameters import packable, run_as_experts
from loadkit_plugins.bitsandbytes.settings import (
    FOUR_BIT,
    METHOD,
    PACKED_EXPERTS,
    PACKED_PARAMETERS,
    declared_options,
    eight_bit,
    four_bit,
    settings,
    width,
)
from loadkit_plugins.bitsandbytes.stored_otherwise import cost, decodable, in_floats, left_in_floats
from loadkit_plugins.bitsandbytes.unsupported_layers import unsupported
from loadkit_plugins.stored_blocks.headers import fields_of


@hookimpl
def loadkit_options() -> Sequence[Option]:
    return declared_options()


@hookimpl
def loadkit_choose_quantization(
    context: Context, architecture: ModelClass, dtype: str
) -> Sequence[Claim[Quantization | None]]:
    wishes = settings(context.request)
    bits = width(wishes)
    stored_as = context.checkpoint.quantization_config
    again = None if bits is None or bits.name == "none" else decodable(context)
    if bits is None or (stored_as and again is None and not _overruled(bits, context)):
        return []
    context = context if again is None else in_floats(context, again)
    if bits.name == "none":
        return [Claim(value=None, because=bits.because, strength=bits.strength)]
    four = bits.name == "load_in_4bit"
    options = four_bit(wishes, dtype, context) if four else eight_bit(wishes)
    skip = (*wishes["skip_modules"].value,) if "skip_modules" in wishes else ()
    registered = context.registered.skip_modules if context.registered else ()
    stored = bool(context.checkpoint.quantization_config)  # then this gives way whole
    known = {} if stored else unsupported(context, architecture, 4 if four else 8)
    as_stored = () if again is None else left_in_floats(again, context.weights(architecture))
    skipped = tuple(dict.fromkeys((*skip, *registered, *known, *as_stored)))
    never = stored or options.get("llm_int8_has_fp16_weight")
    beside = {} if never else packable(context, architecture, skipped)
    value = Quantization(
        method=METHOD,
        bits=4 if four else 8,
        options={**options, **({PACKED_PARAMETERS: beside} if beside else {})},
        skip_modules=skipped,
        decoded_from=fields_of(stored_as) if again else msgspec.UNSET,
    )
    because = _because(bits, wishes, context)
    if again is not None:
        because += "; " + cost(value.again, str(options.get("bnb_4bit_quant_type", "int8")))
    if as_stored:
        because += f"; {some_of(as_stored)} stays as it is: it is stored in floating point"
    if beside:
        said = (f"{name}.{each}" for name, parameters in beside.items() for each in parameters)
        because += f"; {', '.join(said)} are packed too, a matrix at a time (saved so, the model loads with loadkit; transformers alone refuses it)"
    for reason in dict.fromkeys(known.values()):
        because += f"; {', '.join(k for k, r in known.items() if r == reason)} stays as it is: {reason}"
    if architecture.task.endswith("classification"):
        because += "; the classification head stays as it is"
    return [Claim(value=value, because=because, strength=bits.strength)]


@hookimpl
def loadkit_contribute_kwargs(context: Context, plan: Plan) -> Mapping[str, Claim[Any]]:
    quantization = plan.quantized
    if quantization is None or quantization.method != METHOD:
        return {}
    beside = quantization.options.get(PACKED_PARAMETERS, {})
    if not run_as_experts(context, beside):
        return {}
    because = f"the experts are packed in {quantization.bits:g} bits: each that was hit is unpacked for its tokens alone"
    return {"experts_implementation": Claim(value=PACKED_EXPERTS, because=because)}


@hookimpl
def loadkit_estimate_weights(
    context: Context, plan: Plan, weights: Sequence[Weight]
) -> Mapping[str, Packed] | None:
    from loadkit_plugins.bitsandbytes.memory import estimate

    return estimate(context, plan, weights)


@hookimpl
def loadkit_check_plan(context: Context, plan: Plan) -> Sequence[Problem]:
    from loadkit_plugins.bitsandbytes.checks import check

    return check(context, plan)


@hookimpl
def loadkit_build_quantization_config(quantization: Quantization, skip_modules: Sequence[str] | None) -> Any:
    if quantization.method != METHOD:
        return None
    if quantization.prequantized:
        if PACKED_PARAMETERS in quantization.options:
            from loadkit_plugins.bitsandbytes.packed.config import register

            register()  # transformers reads it then
        return None
    from transformers import BitsAndBytesConfig

    _say_once("bitsandbytes.autograd._functions")
    skipped = None if skip_modules is None else list(skip_modules)
    if quantization.decoded_from is not msgspec.UNSET:
        from loadkit_plugins.bitsandbytes import requantized

        requantized.register()
        stored = quantization.decoded_from
        return requantized.RequantizedConfig(stored, **quantization.options, llm_int8_skip_modules=skipped)
    if PACKED_PARAMETERS not in quantization.options:
        return BitsAndBytesConfig(**quantization.options, llm_int8_skip_modules=skipped)
    from loadkit_plugins.bitsandbytes.packed.config import PackedConfig, register

    register()
    return PackedConfig(**quantization.options, llm_int8_skip_modules=skipped)


@hookimpl
def loadkit_dequantize(plan: Plan, model: Any) -> Any:
    if plan.quantization is None or plan.quantization.method != METHOD:
        return None
    import torch

    return model.dequantize(dtype=getattr(torch, plan.dtype))


@hookimpl
def loadkit_decode_stored(plan: Plan, files: Mapping[str, Any]) -> Mapping[str, Any] | None:
    quantization = plan.quantization
    if quantization is None or quantization.decoded_from is msgspec.UNSET or quantization.method != METHOD:
        return None
    import torch

    from loadkit_plugins.stored_blocks.files import decoded_files

    return decoded_files(files, quantization.decoded_from, getattr(torch, plan.dtype))


@hookimpl
def loadkit_compare_tensor(plan: Plan, module: Any, parameter: Any, stored: Any) -> str | None:
    from loadkit_plugins.bitsandbytes.audit import compare

    if getattr(getattr(module, "source_cls", None), "__name__", "") == "Conv1D":
        return None  # GPT-2's layers are stored transposed
    return compare(plan, parameter, stored)


@hookimpl
def loadkit_open_parameter(parameter: Any) -> Opened | None:
    from loadkit_plugins.bitsandbytes.audit import opened

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
    from loadkit_plugins.bitsandbytes.audit import audit

    return audit(plan, model)


@hookimpl
def loadkit_read_back(plan: Plan, model: Any) -> Sequence[Reading]:
    from loadkit_plugins.bitsandbytes.readings import readings

    return list(readings(plan, model))


def _overruled(bits: Asked, context: Context) -> bool:
    """Whether a profile's wish gives way to what the checkpoint is stored in, which the plan shows; demands
    are refused by the check."""
    own = context.checkpoint.quantization_config
    return not bits.demanded and bits.name != "none" and not own.get(bits.name)


def _say_once(logger: str) -> None:
    """Let a logger say each thing once: 8-bit layers log every product's cast (bitsandbytes 0.50)."""
    import logging

    seen: set[str] = set()

    def once(record: logging.LogRecord) -> bool:
        new = record.msg not in seen
        seen.add(str(record.msg))
        return new

    found = logging.getLogger(logger)
    if not any(getattr(f, "__name__", "") == once.__name__ for f in found.filters):
        found.addFilter(once)


def _because(bits: Asked, wishes: Mapping[str, Asked], context: Context) -> str:
    parts = [bits.because]
    if bits.name == "load_in_4bit":
        if "bnb_4bit_quant_type" not in wishes:
            parts.append("nf4 fits normally distributed weights better than transformers' default fp4")
        if "bnb_4bit_compute_dtype" not in wishes:
            parts.append("computes in the dtype of the weights")
        if context.topology.shards_parameters:
            parts.append(f"{context.topology.engine} shards it, so it is packed in the weights' dtype")
    else:
        dropped = [w.name for name in FOUR_BIT if (w := wishes.get(name)) and not w.demanded and w.value]
        if dropped:
            parts.append(f"the profile's {', '.join(dropped)} is for 4 bits only")
    return "; ".join(parts)
