"""What quantized layers, and the config beside them, say of their settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from loadkit import Plan, Quantization, Reading
from loadkit.plugins import base_of, plain
from loadkit_plugins.bitsandbytes.settings import EIGHT_BIT, FOUR_BIT, METHOD, SKIPPING

__all__ = ["readings"]

_reading = partial(Reading, stage="quantization")

OF_FOUR_BITS: Mapping[str, Callable[[Any], Any]] = {
    "bnb_4bit_quant_type": lambda m: m.weight.quant_state.quant_type,
    "bnb_4bit_use_double_quant": lambda m: m.weight.quant_state.nested,
    "bnb_4bit_compute_dtype": lambda m: str(m.compute_dtype).removeprefix("torch."),
    "bnb_4bit_quant_storage": lambda m: str(m.weight.dtype).removeprefix("torch."),
}
"""Setting to how a 4-bit layer has it."""

OF_EIGHT_BITS: Mapping[str, Callable[[Any], Any]] = {
    "llm_int8_threshold": lambda m: m.state.threshold,
    "llm_int8_has_fp16_weight": lambda m: m.state.has_fp16_weights,
}
"""Setting to how an 8-bit layer has it."""


def readings(plan: Plan, model: Any) -> Iterator[Reading]:
    """Width, settings of every layer, fields of the config, and what was to be left alone."""
    quantization = plan.quantized
    if quantization is None or quantization.method != METHOD:
        return
    if plan.adapters is not None and plan.adapters.dequantize:
        return
    import bitsandbytes as bnb

    four = quantization.bits == 4
    base = base_of(model)
    kind = bnb.nn.Linear4bit if four else bnb.nn.Linear8bitLt
    layers = {name: m for name, m in base.named_modules() if isinstance(m, kind)}
    if layers:
        yield from _of_layers(quantization, [*layers.values()], OF_FOUR_BITS if four else OF_EIGHT_BITS)
        yield from _of_config(quantization, base)
    if quantization.skip_modules:
        packed = [
            name for name, m in base.named_modules() if isinstance(m, bnb.nn.Linear4bit | bnb.nn.Linear8bitLt)
        ]
        yield _reading(
            names=_names("skip_modules", *SKIPPING),
            where="the modules that stay as they are",
            planned=list(quantization.skip_modules),
            effective=[entry for entry in quantization.skip_modules if not _within(entry, packed)],
            verbatim=False,  # registered and automatic ones are among them
            code="skipped-module-quantized",
        )


def _packed(layer: Any) -> bool:
    """Whether a layer holds quantized weights: one without has no settings to tell."""
    if layer.weight.__class__.__name__ == "Int8Params":
        return True
    return getattr(layer.weight, "quant_state", None) is not None


def _of_layers(
    quantization: Quantization, layers: Sequence[Any], read: Mapping[str, Callable[[Any], Any]]
) -> Iterator[Reading]:
    loaded = [m for m in layers if _packed(m)]  # a hollow layer is told as one
    for name, effective in read.items():
        if name in quantization.options and loaded:
            found = {effective(m) for m in loaded}
            yield _reading(
                names=_names(name),
                where=f"{name} of {len(loaded)} {type(loaded[0]).__name__}",
                planned=quantization.options[name],
                effective=found.pop() if len(found) == 1 else sorted(found, key=str),
                code="4bit-setting" if name in FOUR_BIT else "8bit-setting",
            )


def _of_config(quantization: Quantization, base: Any) -> Iterator[Reading]:
    """The fields of the config that the model carries, and saves."""
    config = getattr(base.config, "quantization_config", None)
    held: Mapping[str, Any] = config if isinstance(config, Mapping) else config.to_dict() if config else {}
    for name in ("load_in_4bit", "load_in_8bit", *FOUR_BIT, *EIGHT_BIT):
        if name in quantization.options:
            yield _reading(
                names=_names(name),
                where=f"quantization_config.{name}",
                planned=quantization.options[name],
                effective=plain(held.get(name, held.get(f"_{name}"))),
                code="quantization-config",
            )


def _names(*names: str) -> tuple[str, ...]:
    return (names[0], *(f"quantization_config.{name}" for name in names))


def _within(entry: str, names: Sequence[str]) -> bool:
    """Whether a module of that path, or with a path that ends so, is or holds one of these."""
    return any(f".{entry}." in f".{name}." for name in names)
