"""What bitsandbytes really quantized, counted in modules and in bytes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from loadkit import Finding, Opened, Plan, Unit
from loadkit.plugins import base_of, input_embeddings, output_embeddings
from loadkit_plugins.bitsandbytes.settings import PACKED_PARAMETERS

__all__ = ["audit", "compare", "opened"]

_finding = partial(Finding, "quantization", "bitsandbytes")

MOST_UNQUANTIZED = 0.5
"""Share of the weight bytes, embeddings and head aside, above which staying in 16 bits is a finding."""

LOOKED_AT = 4096
"""How many of a tensor's first scales are looked at."""


def audit(plan: Plan, model: Any) -> Sequence[Finding]:
    """Compare the quantized modules with the plan."""
    quantization = plan.quantization
    if quantization is None or quantization.method != "bitsandbytes":
        return []
    if plan.adapters is not None and plan.adapters.dequantize:
        left = [
            name
            for name, m in model.named_modules()
            if hasattr(m, "quant_state") or hasattr(m, "state") or hasattr(m, "packed_layouts")
        ]
        return [_finding("not-dequantized", "a module is still quantized", "none", left[0])] if left else []
    import bitsandbytes as bnb

    kind = bnb.nn.Linear4bit if quantization.bits == 4 else bnb.nn.Linear8bitLt
    modules = [(name, m) for name, m in model.named_modules() if isinstance(m, kind)]
    beside = quantization.options.get(PACKED_PARAMETERS)
    if not modules and not beside:
        what = f"no module is a {kind.__name__}"
        return [_finding("not-quantized", what, f"{quantization.bits:g} bits", "no quantized module")]
    found = [*_share(model, kind), *_not_finite(model)]
    if beside:
        from loadkit_plugins.bitsandbytes.packed_audit import packed_findings

        found += packed_findings(plan, base_of(model))
    return found


def compare(plan: Plan, parameter: Any, stored: Any) -> str | None:
    """Quantize the file's values again and compare the codes; None for what isn't quantized here.

    4-bit blocks run over rows, and 8-bit scales are each row's own: the first rows can be compared alone.
    """
    quantization = plan.quantization
    if quantization is None or quantization.method != "bitsandbytes":
        return None  # without importing bitsandbytes, which takes a second
    if not stored.is_floating_point():
        return None
    if isinstance(parameter, Unit) or hasattr(parameter, "packing"):
        if quantization.prequantized:
            return None  # codes, whatever dtype they are packed in
        from loadkit_plugins.bitsandbytes.packed_audit import compare_unit

        return compare_unit(plan, parameter, stored)
    if stored.ndim != 2:
        return None
    import bitsandbytes.functional as functional
    import torch

    state = getattr(parameter, "quant_state", None)
    values = stored.to(getattr(torch, plan.dtype)).to(parameter.device)
    if state is not None:
        flat = values.flatten()
        whole = flat.numel() // state.blocksize * state.blocksize
        if not whole or tuple(state.shape[1:]) != tuple(stored.shape[1:]):
            return None
        again, _ = functional.quantize_4bit(
            flat[:whole], blocksize=state.blocksize, quant_type=state.quant_type
        )
        held = parameter.data.view(torch.uint8).flatten()[: whole // 2]
        return _codes(held, again.view(torch.uint8).flatten())
    if getattr(parameter, "SCB", None) is not None and parameter.shape[1:] == stored.shape[1:]:
        again, scales, _ = functional.int8_vectorwise_quant(values.to(torch.float16))
        rows = stored.shape[0]
        return _codes(parameter.data[:rows], again) or _codes(
            parameter.SCB[:rows], scales.to(parameter.SCB.device)
        )
    return None


def opened(parameter: Any) -> Opened | None:
    """The tensors of a quantized parameter; None for another one."""
    if not parameter.__dict__:
        return None  # a plain parameter
    if (packing := getattr(parameter, "packing", None)) is not None:
        shape = tuple(packing.layout.shape)
        return Opened(
            data=parameter.data,
            constants=(*packing.beside.values(),),
            count=math.prod(shape),
            shape=shape,
            units=packing.layout.units,
        )
    state = getattr(parameter, "quant_state", None)
    rows = getattr(parameter, "SCB", None)
    if state is None and rows is None:
        return None
    nested = getattr(state, "state2", None)
    found = [getattr(s, name, None) for s in (state, nested) if s is not None for name in ("absmax", "code")]
    found += [tensor for tensor in (rows, getattr(parameter, "CB", None)) if tensor is not parameter.data]
    found.append(getattr(state, "offset", None))
    apart = {
        tensor.data_ptr(): tensor for tensor in found if tensor is not None and hasattr(tensor, "data_ptr")
    }
    apart.pop(parameter.data_ptr(), None)
    shape = tuple(map(int, getattr(state, "shape", None) or parameter.shape))
    return Opened(data=parameter.data, constants=tuple(apart.values()), count=math.prod(shape), shape=shape)


def _codes(held: Any, expected: Any) -> str:
    differ = int((held != expected).sum())
    return f"{differ} of {held.numel()} quantized values differ" if differ else ""


def _not_finite(model: Any) -> Iterator[Finding]:
    """Scales that are infinite or no numbers make every weight of their block so."""
    wrong = [
        name
        for name, parameter in model.named_parameters()
        if (parts := opened(parameter))
        for scale in parts.constants
        if scale.device.type != "meta"
        and scale.is_floating_point()
        and not bool(scale.flatten()[:LOOKED_AT].isfinite().all())
    ]
    if wrong:
        yield _finding(
            "scales-not-finite",
            f"{len(wrong)} quantized weights have scales that are infinite or no numbers, such as {wrong[0]}",
            "finite scales",
            f"{len(wrong)} that aren't",
        )


def _share(model: Any, kind: type) -> Iterator[Finding]:
    """How much stayed as it was: transformers passes over what isn't a plain linear layer in silence."""
    base = base_of(model)
    ends = (input_embeddings(base), output_embeddings(base))
    apart = {id(weight) for m in ends if (weight := getattr(m, "weight", None)) is not None}
    packed, left = 0, 0
    largest: dict[str, int] = {}
    dtypes: dict[str, str] = {}
    for name, module in base.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            size = parameter.numel() * parameter.element_size()
            if (isinstance(module, kind) and key == "weight") or hasattr(parameter, "packing"):
                packed += size
            elif id(parameter) not in apart and parameter.ndim > 1 and not _adapters(name):
                left += size
                family = ".".join("*" if part.isdigit() else part for part in f"{name}.{key}".split("."))
                largest[family] = largest.get(family, 0) + size
                dtypes[family] = str(parameter.dtype).removeprefix("torch.")
    if left > MOST_UNQUANTIZED * (left + packed):
        family = max(largest, key=lambda f: largest[f])
        yield _finding(
            "mostly-unquantized",
            f"{left:,} bytes of weights ({left / (left + packed):.0%}) stay unquantized, {largest[family]:,} of them in "
            f"{family}, in {dtypes[family]}: they were to stay so, or are more than multiplied with",
            f"at most {MOST_UNQUANTIZED:.0%}",
            f"{left / (left + packed):.0%}",
            severity="warning",
            remedy="count on that much memory, or choose another quantizer for this architecture",
        )


def _adapters(name: str) -> bool:
    """Whether a module is an adapter's: a low-rank half, a module that it trains whole, rows of tokens."""
    return any(part in name for part in ("lora_", "modules_to_save", "token_adapter", "original_module"))
