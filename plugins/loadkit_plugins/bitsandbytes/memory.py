"""What bitsandbytes makes of each weight, in bytes."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from loadkit import Context, Packed, Plan, Quantization, Weight
from loadkit.plugins import FLOATS
from loadkit_plugins.bitsandbytes.offloaded import offloaded
from loadkit_plugins.bitsandbytes.packed.layout import BLOCK, NESTED_BLOCK, Layout
from loadkit_plugins.bitsandbytes.packed_parameters import is_kept
from loadkit_plugins.bitsandbytes.settings import OFFLOAD, PACKED_PARAMETERS
from loadkit_plugins.bitsandbytes.stored_otherwise import as_the_files_name_it, in_floats
from loadkit_plugins.stored_blocks.headers import as_floats

__all__ = ["estimate", "layout_of"]

CODES, NESTED_CODES = 16 * 4, 256 * 4 + 4
"""Bytes of a 4-bit code book; of the scales' code book with their offset."""

COMPANIONS = ("_nested_offset", "_nested_scales", "_scales")
"""What lies beside packed parameters, by the ends of their names."""

QUANT_STATE = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", ".SCB")


def estimate(context: Context, plan: Plan, weights: Sequence[Weight]) -> Mapping[str, Packed] | None:
    """The weights that get quantized, or are stored so, to their bytes."""
    quantization = plan.quantization
    if quantization is None or quantization.method != "bitsandbytes":
        return None
    if quantization.prequantized:
        names = {w.name for w in weights}
        return {w.name: packed for w in weights if (packed := _stored(w, names)) is not None}
    if quantization.again:
        decoded = as_floats(context.checkpoint)
        plain = in_floats(context, decoded)
        made = _quantized(plain, plan, quantization, plain.weights(plan.model_class))
        return as_the_files_name_it(weights, decoded, made, plan.dtype)
    return _quantized(context, plan, quantization, weights)


def _quantized(
    context: Context, plan: Plan, quantization: Quantization, weights: Sequence[Weight]
) -> dict[str, Packed]:
    kept = _kept(context, plan)
    left = [w for w in weights if w.dtype in FLOATS and not is_kept(w, kept)]
    layers = {
        w.name: _four_bit(w, quantization) if quantization.bits == 4 else _eight_bit(w)
        for w in left
        if w.kind == "linear" and len(w.shape) == 2
    }
    return {**layers, **_beside(left, quantization, plan.dtype)}


def _beside(weights: Sequence[Weight], quantization: Quantization, dtype: str) -> dict[str, Packed]:
    """What is packed beside the layers. Experts that are stored in parts, as gate and up, are packed whole:
    what lies beside their codes is counted with the first part."""
    classes = quantization.options.get(PACKED_PARAMETERS, {})
    parts: dict[tuple[str, str], list[Weight]] = {}
    for w in weights:
        owner, _, parameter = w.multiplied.rpartition(".")
        if parameter in classes.get(owner, {}):
            alone = w.kind == "experts" and parameter not in w.name.split(".")
            parts.setdefault((w.multiplied, w.module.rpartition(".")[0] if alone else w.name), []).append(w)
    found = {}
    for several in parts.values():
        first = several[0]
        shape = (sum(w.count for w in several) // first.shape[-1], first.shape[-1])
        layout = layout_of(quantization, shape, first.units, dtype)
        for w in several:
            beside = layout.companion_bytes if w is first else 0
            data = layout.data_bytes * w.count // math.prod(shape)
            found[w.name] = Packed(data=data, constants=beside, dtype=layout.packed_dtype)
    return found


def layout_of(quantization: Quantization, shape: tuple[int, ...], units: int, dtype: str) -> Layout:
    """How the plan packs a parameter.

    Parameters:
        quantization: what was decided.
        shape, units: as `Layout` takes them.
        dtype: of the load.
    """
    options = quantization.options
    if quantization.bits == 8:
        return Layout(shape=shape, units=units, bits=8, dtype=dtype)
    return Layout(
        shape=shape,
        units=units,
        bits=4,
        dtype=dtype,
        quant_type=str(options["bnb_4bit_quant_type"]),
        nested=bool(options.get("bnb_4bit_use_double_quant")),
        storage=str(options.get("bnb_4bit_quant_storage", "uint8")),
    )


def _kept(context: Context, plan: Plan) -> tuple[str, ...]:
    """Ends of paths that stay as they are: the plan's, and those that transformers keeps in float32."""
    assert plan.quantization is not None
    facts = context.library.class_facts(plan.model_class.model_class)
    beside = offloaded(plan) if plan.quantization.options.get(OFFLOAD) else ()
    head = context.head_layers(plan.model_class)
    return (*plan.quantization.skip_modules, *head, *(facts.keep_in_fp32_modules if facts else ()), *beside)


def _four_bit(weight: Weight, quantization: Quantization) -> Packed:
    blocks = math.ceil(weight.count / BLOCK)
    if quantization.options.get("bnb_4bit_use_double_quant"):
        scales = blocks + math.ceil(blocks / NESTED_BLOCK) * 4 + NESTED_CODES
    else:
        scales = blocks * 4
    packed_in = str(quantization.options.get("bnb_4bit_quant_storage", "uint8"))
    return Packed(data=math.ceil(weight.count / 2), constants=scales + CODES, dtype=packed_in)


def _eight_bit(weight: Weight) -> Packed:
    """A byte each, and a float32 scale for each row."""
    return Packed(data=weight.count, constants=4 * weight.shape[0], dtype="int8")


def _stored(weight: Weight, names: Collection[str]) -> Packed | None:
    """A tensor of a checkpoint that bitsandbytes quantized; None for one that it left alone."""
    for end in COMPANIONS:
        if weight.name.endswith(end) and weight.name.removesuffix(end) in names:
            return Packed(data=0, constants=weight.nbytes)
    if f"{weight.name}{COMPANIONS[-1]}" in names:
        return Packed(data=weight.nbytes, dtype=weight.dtype)
    if weight.name.endswith(QUANT_STATE):
        return Packed(data=0, constants=weight.nbytes)
    if ".quant_state." in weight.name:
        return Packed(data=0, constants=4)  # the settings as text; of them the offset becomes a tensor
    if weight.name.endswith(".weight_format"):
        return Packed(data=0)
    packed = weight.name.endswith(".weight") and weight.dtype in ("uint8", "int8")
    return Packed(data=weight.nbytes, dtype=weight.dtype) if packed else None
