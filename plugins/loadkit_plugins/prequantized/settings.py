"""What a checkpoint says of its quantization, and what comes of it on a machine."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from loadkit import Checkpoint, Context, Machine, Quantization, StoredFormat
from loadkit_plugins.prequantized.method import Method
from loadkit_plugins.prequantized.methods import KERNELS, methods_named
from loadkit_plugins.prequantized.requirements import lacking

__all__ = [
    "OURS",
    "asked_back",
    "format_on",
    "holds_floats",
    "method_of",
    "misplaced",
    "runnable",
    "stored",
    "stored_here",
]

FP8_KERNELS = Method(name="", quantizer="", devices=("cuda", "xpu"), capability=(8, 9))
"""Where `use_optimized_inference` of compressed-tensors has kernels."""


OURS = re.compile(r"^loadkit_(?=bitsandbytes)")
"""Begins the name of a method of transformers' by which loadkit packs more than transformers does."""


def stored(checkpoint: Checkpoint) -> Quantization | None:
    """The quantization that the checkpoint's config states; None for an unquantized one."""
    config = checkpoint.quantization_config
    if not config:
        return None
    name = _name(config)
    options = {k: v for k, v in sorted(config.items()) if k != "quant_method" and not k.startswith("_")}
    if OURS.match(str(config.get("quant_method"))):
        options |= {k[1:]: True for k in ("_load_in_4bit", "_load_in_8bit") if config.get(k)}
    return Quantization(method=name, bits=_bits(name, options), options=options, prequantized=True)


def _name(config: Mapping[str, Any]) -> str:
    """As transformers tells it: the fields of bitsandbytes speak before the method's name
    (`AutoQuantizationConfig.from_dict`)."""
    if config.get("load_in_4bit") or config.get("load_in_8bit"):
        return "bitsandbytes"
    name = OURS.sub("", str(config.get("quant_method") or "unknown"))
    return "bitsandbytes" if name in ("bitsandbytes_4bit", "bitsandbytes_8bit") else name


def stored_here(context: Context, dtype: str) -> Quantization | None:
    """The same, with what it is in memory on this machine where transformers knows the method."""
    found = stored(context.checkpoint)
    method = None if found is None else method_of(found)
    if found is None or method is None:
        return found
    made = format_on(method, found.options, context.machine, dtype, asked_back(context))
    if made.trains and not made.dtype and context.request.value("training", False):
        made = msgspec.structs.replace(made, settings=_settings(method, found.options))
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
    if holds_floats(method, options):
        return StoredFormat(
            dtype=dtype,
            because="its layers hold them so",
            trains=_trains(method, options, machine),
            needs=method.needs,
        )
    if method.config and (options.get("dequantize") or options.get("run_compressed") is False):
        because = "its config says so"
    elif method.name == "gguf":
        because = "loadkit doesn't keep its blocks"
    elif method.turned_back:
        missing = lacking(_packages(method, machine, "needs_kept"), machine)
        because = misplaced(method, machine) or (f"no {missing[0]}" if missing else "")
    needs = _needs(method, options, machine, bool(because or (asked and method.config)))
    if asked and method.config:
        return StoredFormat(dtype=dtype, asked=True, needs=needs)
    if because:
        return StoredFormat(dtype=dtype, because=because, needs=needs)
    return StoredFormat(
        because="" if _optimized(options, machine) else method.later,
        trains=_trains(method, options, machine),
        saves=method.saves and not str(options.get("backend")).startswith("exllama_v"),
        needs=needs,
    )


def holds_floats(method: Method, options: Mapping[str, Any]) -> bool:
    """Whether its layers hold weights in floating point, whatever the files do."""
    return bool(method.floats_with) and _says(options, method.floats_with)


def runnable(method: Method, made: StoredFormat, machine: Machine) -> list[str]:
    """The packages that weights which stay can't be computed with here; empty where there is nothing to
    miss."""
    return [] if made.dtype else lacking(method.runs_with, machine)


def _settings(method: Method, options: Mapping[str, Any]) -> dict[str, Any]:
    """What of the config a training load sets, where it leaves the choice open."""
    return {k: v for k, v in method.trains_set.items() if options.get(k) in (None, "auto")}


def _says(options: Mapping[str, Any], fields: Mapping[str, Any]) -> bool:
    return all(options.get(field) == value for field, value in fields.items())


def _packages(method: Method, machine: Machine, field: str) -> tuple[str, ...]:
    found: tuple[str, ...] = method.elsewhere.get(machine.kind, {}).get(field, getattr(method, field))
    return found


def _needs(
    method: Method, options: Mapping[str, Any], machine: Machine, turned_back: bool
) -> tuple[str, ...]:
    if method.name == "gguf" and options.get("package") == "":
        return ()  # an architecture that transformers reads itself
    needs = _packages(method, machine, "needs")
    if turned_back:
        return tuple(need for need in needs if need != KERNELS)
    if options.get("pseudoquantization"):
        return tuple(need for need in needs if not need.startswith("qutlass"))
    return (*needs, *_packages(method, machine, "needs_kept"))


def _trains(method: Method, options: Mapping[str, Any], machine: Machine) -> bool:
    """As the quantizers' `is_trainable` has it, and where PEFT can adapt the layers."""
    if method.unadapted or not _says(options, method.trains_with):
        return False
    if method.name == "torchao":  # transformers goes by the name of the type: eight bits only
        return _torchao_bits(options) == 8
    if method.name == "compressed-tensors" and (_optimized(options, machine) or _packed(options)):
        return False
    return method.trains and not (method.trains_from and lacking([method.trains_from], machine))


def _torchao_bits(options: Mapping[str, Any]) -> int:
    """Bits by the name of torchao's config (`_fuzzy_match_size`); 0 where it doesn't tell."""
    kind = options.get("quant_type")
    default = kind.get("default") if isinstance(kind, Mapping) else None
    name = str(default.get("_type", "")) if isinstance(default, Mapping) else ""
    found = re.search(r"(\d)weight", name.lower())
    return int(found.group(1)) if found else 0


def _optimized(options: Mapping[str, Any], machine: Machine) -> bool:
    """Whether compressed-tensors keeps fp8 weights for kernels of its own, which only infer."""
    if not options.get("use_optimized_inference") or misplaced(FP8_KERNELS, machine):
        return False
    weights = [group.get("weights") or {} for group in _groups(options)]
    return any((w.get("type"), w.get("num_bits")) == ("float", 8) for w in weights)


def _groups(options: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    found = options.get("config_groups")
    return [g for g in found.values() if isinstance(g, Mapping)] if isinstance(found, Mapping) else []


def _packed(options: Mapping[str, Any]) -> bool:
    """Whether layers have no `weight` until they have run once, so that PEFT 0.21 can't adapt them."""
    return any("pack" in str(group.get("format") or options.get("format")) for group in _groups(options))


def _bits(name: str, config: Mapping[str, Any]) -> float:
    """Bits a weight; 0 where neither the config nor the method's name tells."""
    if config.get("load_in_4bit"):
        return 4
    if config.get("load_in_8bit"):
        return 8
    for key in ("bits", "w_bit", "weight_bits", "nbits", "num_bits"):
        if isinstance(config.get(key), int | float):
            return float(config[key])
    for group in _groups(config):
        weights = group.get("weights")
        if isinstance(weights, Mapping) and isinstance(weights.get("num_bits"), int):
            return float(weights["num_bits"])
    told = re.search(
        r"int(\d)|float(\d)", str(config.get("weights") or config.get("quant_type") or "").lower()
    )
    method = methods_named().get(name)
    if told:
        return float(told.group(1) or told.group(2))
    return method.bits if method else 0
