"""What a checkpoint says of its quantization, and what comes of it on a machine."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from loadkit import Checkpoint, Context, Machine, Quantization, StoredFormat
from loadkit_plugins.prequantized.methods import KERNELS, Method, methods_named
from loadkit_plugins.prequantized.requirements import lacking

__all__ = ["asked_back", "format_on", "method_of", "misplaced", "stored", "stored_here"]


def stored(checkpoint: Checkpoint) -> Quantization | None:
    """The quantization that the checkpoint's config states; None for an unquantized one."""
    config = checkpoint.quantization_config
    if not config:
        return None
    default = "bitsandbytes" if config.get("load_in_4bit") or config.get("load_in_8bit") else "unknown"
    name = str(config.get("quant_method", default))
    return Quantization(
        method=name,
        bits=_bits(name, config),
        options={k: v for k, v in sorted(config.items()) if k != "quant_method" and not k.startswith("_")},
        prequantized=True,
    )


def stored_here(context: Context, dtype: str) -> Quantization | None:
    """The same, with what it is in memory on this machine where transformers knows the method."""
    found = stored(context.checkpoint)
    method = None if found is None else method_of(found)
    if found is None or method is None:
        return found
    made = format_on(method, found.options, context.machine, dtype, asked_back(context))
    return msgspec.structs.replace(found, format=made)


def method_of(quantization: Quantization) -> Method | None:
    """The method as transformers knows it; None where it doesn't."""
    return methods_named().get(quantization.method)


def asked_back(context: Context) -> bool:
    """Whether `dequantize=True` was asked for, or `dequantize_stored` names the checkpoint's method."""
    stored_by = (context.checkpoint.quantization_config or {}).get("quant_method")
    named = stored_by in context.request.value("dequantize_stored", ())
    return named or bool(context.request.value("dequantize", False))


def misplaced(method: Method, machine: Machine) -> str:
    """Why the weights can't stay as they are stored on this machine's device; "" where they can."""
    if machine.kind not in method.devices:
        wanted = {"cuda": "NVIDIA GPU", "mps": "Apple GPU"}.get(method.devices[0], method.devices[0])
        if method.capability > (0, 0):
            return "no GPU of capability {}.{}".format(*method.capability)
        return f"no {wanted}"
    if machine.kind == "cuda" and machine.capability < method.capability:
        return "no GPU of capability {}.{}".format(*method.capability)
    return ""


def format_on(
    method: Method, options: Mapping[str, Any], machine: Machine, dtype: str, asked: bool
) -> StoredFormat:
    """What weights stored by the method are on a machine.

    Parameters:
        method: the method.
        options: the checkpoint's own quantization config.
        machine: the machine.
        dtype: the dtype of the load.
        asked: whether `dequantize=True` was asked for.
    """
    because = ""
    if method.config and (options.get("dequantize") or options.get("run_compressed") is False):
        because = "its config says so"
    elif method.name == "gguf":
        because = "loadkit doesn't keep its blocks"
    elif method.turned_back:
        missing = lacking(method.needs_kept, machine)
        because = misplaced(method, machine) or (f"no {missing[0]}" if missing else "")
    needs = _needs(method, options, bool(because or (asked and method.config)))
    if asked and method.config:
        return StoredFormat(dtype=dtype, asked=True, needs=needs)
    if because:
        return StoredFormat(dtype=dtype, because=because, needs=needs)
    return StoredFormat(
        because=method.later,
        trains=_trains(method, options, machine),
        saves=method.saves and not str(options.get("backend")).startswith("exllama_v"),
        needs=needs,
    )


def _needs(method: Method, options: Mapping[str, Any], turned_back: bool) -> tuple[str, ...]:
    if method.name == "gguf" and options.get("package") == "":
        return ()  # an architecture that transformers reads itself
    if turned_back:
        return tuple(need for need in method.needs if need != KERNELS)
    if options.get("pseudoquantization"):
        return tuple(need for need in method.needs if not need.startswith("qutlass"))
    return (*method.needs, *method.needs_kept)


def _trains(method: Method, options: Mapping[str, Any], machine: Machine) -> bool:
    """As the quantizers' `is_trainable` has it."""
    field, value = method.trains_with
    if field and options.get(field) != value:
        return False
    if method.name == "torchao":  # transformers goes by the name of the type: eight bits only
        found = re.search(r"(\d)weight", str(options.get("quant_type", "")).lower())
        return found is not None and found.group(1) == "8"
    if method.name == "compressed-tensors" and (options.get("use_optimized_inference") or _packed(options)):
        return False
    return method.trains and not (method.trains_from and lacking([method.trains_from], machine))


def _packed(options: Mapping[str, Any]) -> bool:
    """Whether layers have no `weight` until they have run once, so that PEFT 0.21 can't adapt them."""
    groups = [group for group in (options.get("config_groups") or {}).values() if isinstance(group, Mapping)]
    return any("pack" in str(group.get("format") or options.get("format")) for group in groups)


def _bits(name: str, config: Mapping[str, Any]) -> float:
    """Bits a weight; 0 where neither the config nor the method's name tells."""
    if config.get("load_in_4bit"):
        return 4
    if config.get("load_in_8bit"):
        return 8
    for key in ("bits", "w_bit", "weight_bits", "nbits"):
        if isinstance(config.get(key), int | float):
            return float(config[key])
    for group in (config.get("config_groups") or {}).values():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if isinstance(weights, Mapping) and isinstance(weights.get("num_bits"), int):
            return float(weights["num_bits"])
    told = re.search(
        r"int(\d)|float(\d)", str(config.get("weights") or config.get("quant_type") or "").lower()
    )
    method = methods_named().get(name)
    if told:
        return float(told.group(1) or told.group(2))
    return method.bits if method else 0
