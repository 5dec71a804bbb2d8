"""Packed parameters against the plan and the files: all that were to be, nothing else, every unit its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from loadkit import Finding, Plan, Unit
from loadkit.plugins import some_of
from loadkit_plugins.bitsandbytes.packed.layout import BLOCK, NESTED_BLOCK
from loadkit_plugins.bitsandbytes.settings import PACKED_EXPERTS, PACKED_PARAMETERS

__all__ = ["compare_unit", "packed_findings"]

_finding = partial(Finding, "quantization", "bitsandbytes")

NESTED_GAP = 0.02
"""How far a scale may be off that was quantized too, as a share of the largest of its 256."""


def packed_findings(plan: Plan, base: Any) -> Iterator[Finding]:
    """What is packed and wasn't to be, what was to be and isn't, whose parts don't fit, and what runs it."""
    from loadkit_plugins.bitsandbytes.packed.modules import is_carrier

    assert plan.quantization is not None
    wanted: Mapping[str, Mapping[str, str]] = plan.quantization.options[PACKED_PARAMETERS]
    modules = dict(base.named_modules())
    skipped = _skipped(base, plan)
    plain, unplanned, misshapen, otherwise = [], [], [], []
    for path, module in modules.items():
        names = wanted.get(type(module).__name__, {})
        held = module.packed_layouts if is_carrier(module) else {}
        plain += [
            f"{path}.{n}" for n in names if n not in held and n in module._parameters and not skipped(path)
        ]
        unplanned += [f"{path}.{n}" for n in held if n not in names or skipped(path)]
        for name, layout in held.items():
            codes, beside = module._parameters[name], {n: (*about,) for n, about in layout.companions.items()}
            shapes = {n: (tuple(t.shape), str(t.dtype)[6:]) for n, t in codes.packing.beside.items()}
            if shapes != beside or (codes.numel() * codes.element_size() != layout.data_bytes):
                misshapen.append(f"{path}.{name}")
        if held and hasattr(module, "has_gate"):
            otherwise += [f"{path} ({said})"] if (said := _runs_otherwise(plan, module)) else []
    if plain:
        yield _finding(
            "left-unpacked",
            f"{len(plain)} parameters were to be packed, and hold plain values: {some_of(plain)}",
            f"{plan.quantization.bits:g} bits",
            str(modules[plain[0].rpartition(".")[0]]._parameters[plain[0].rpartition(".")[2]].dtype)[6:],
        )
    if unplanned:
        yield _finding(
            "packed-unplanned",
            f"{len(unplanned)} parameters are packed that were to stay as they are: {some_of(unplanned)}",
            "plain values",
            "codes",
        )
    if misshapen:
        yield _finding(
            "packed-misshapen",
            f"the codes or scales of {len(misshapen)} packed parameters haven't the size of their values: {some_of(misshapen)}",
            "those of each unit",
            "others",
        )
    if otherwise:
        yield _finding(
            "experts-run-otherwise",
            f"{len(otherwise)} modules of packed experts are run by another function than planned: {some_of(otherwise)}",
            str(plan.kwargs.get("experts_implementation", "eager")),
            "another",
        )


def _skipped(base: Any, plan: Plan) -> Any:
    """Whether a module was to stay as it is: by the plan's list, or transformers' automatic one."""
    from transformers.quantizers.quantizers_utils import should_convert_module

    config: Any = getattr(base.config, "quantization_config", None)
    held: Mapping[str, Any] = config.to_dict() if hasattr(config, "to_dict") else config or {}
    entries = [*(held.get("llm_int8_skip_modules") or ()), *(base._keep_in_fp32_modules or ())]
    assert plan.quantization is not None
    ends = plan.quantization.skip_modules

    def skipped(path: str) -> bool:
        return not should_convert_module(path, entries) or any(f".{e}." in f".{path}." for e in ends)

    return skipped


def _runs_otherwise(plan: Plan, module: Any) -> str:
    """What runs a module of experts, where it isn't what was planned."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    from loadkit_plugins.bitsandbytes.packed.experts import experts_forward

    planned, held = plan.kwargs.get("experts_implementation"), module.config._experts_implementation
    if isinstance(planned, str) and held != planned:
        return str(held)
    if held == PACKED_EXPERTS and ALL_EXPERTS_FUNCTIONS.get(held) is not experts_forward:
        return f"another function of the name {held!r}"
    return ""


def compare_unit(plan: Plan, held: Any, stored: Any) -> str | None:
    """Quantize rows of a unit again, and compare codes and scales; None where they begin within a block.

    Parameters:
        held: a `Unit`, or a packed parameter of one matrix.
        stored: rows as the files have them, of which the first is the unit's `start`.
    """
    import torch

    unit = held if isinstance(held, Unit) else Unit(held, 0, 0)
    packing = unit.parameter.packing
    layout, columns = packing.layout, packing.layout.unit_shape[1]
    values = stored.to(getattr(torch, plan.dtype)).to(unit.parameter.device).contiguous()
    if values.shape[-1] != columns:
        return None
    for name, (shape, _) in layout.companions.items():
        if (found := tuple(packing.beside[name].shape)) != shape:
            return f"{name} of the shape {found} instead of {shape}"
    if layout.bits == 8:
        return _rows_differ(unit, values.reshape(-1, columns))
    return _blocks_differ(unit, values.flatten(), unit.start * columns)


def _rows_differ(unit: Unit, rows: Any) -> str:
    import torch
    from bitsandbytes import functional

    packing = unit.parameter.packing
    codes, scales, _ = functional.int8_vectorwise_quant(rows.to(torch.float16))
    here = slice(unit.start, unit.start + len(rows))
    held = unit.parameter.data.view(packing.layout.stacked)[unit.index, here]
    return _differ("quantized values", held != codes) or _differ(
        "scales", packing.beside["scales"][unit.index, here] != scales
    )


def _blocks_differ(unit: Unit, values: Any, offset: int) -> str | None:
    import torch
    from bitsandbytes import functional

    packing = unit.parameter.packing
    layout = packing.layout
    to_the_end = offset + values.numel() == layout.count
    count = values.numel() if to_the_end else values.numel() // BLOCK * BLOCK
    if offset % BLOCK or not count:
        return None
    again, state = functional.quantize_4bit(values[:count], blocksize=BLOCK, quant_type=layout.quant_type)
    codes = unit.parameter.data.view(layout.units, -1)[unit.index].view(torch.uint8)
    held = codes[offset // 2 : offset // 2 + again.numel()]
    if said := _differ("quantized values", held != again.flatten()):
        return said
    blocks = slice(offset // BLOCK, offset // BLOCK + state.absmax.numel())
    scales = packing.beside["scales"][unit.index]
    if not layout.nested:
        return _differ("scales", scales[blocks] != state.absmax)
    nested = packing.beside["nested_scales"][unit.index]
    code = functional.create_dynamic_map().to(scales.device)
    state2 = functional.QuantState(absmax=nested, blocksize=NESTED_BLOCK, code=code, dtype=torch.float32)
    whole = functional.dequantize_blockwise(scales, state2) + packing.beside["nested_offset"][unit.index]
    most = nested.repeat_interleave(NESTED_BLOCK)[blocks] * NESTED_GAP
    gap = (whole[blocks] - state.absmax).abs()
    return _differ("scales", ~((gap <= most) | (gap <= 1e-3 * state.absmax)))  # NaN is no less


def _differ(what: str, differs: Any) -> str:
    wrong = int(differs.sum())
    return f"{wrong} of {differs.numel()} {what} differ" if wrong else ""
