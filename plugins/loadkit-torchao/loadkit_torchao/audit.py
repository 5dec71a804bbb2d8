"""What torchao really quantized: which layers, to what type, with which groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from loadkit import Finding, Opened, Plan
from loadkit.plugins import base_of
from loadkit_torchao.settings import INT8, METHOD

__all__ = ["audit", "compare", "opened"]

_finding = partial(Finding, "quantization", METHOD)

CLASSES = {"Int8Tensor": "int8_weight_only", "Int4TilePackedTo4dTensor": "int4_weight_only"}
TILE = 8
"""int4: rows that are packed together."""

ADAPTERS = ("lora_", "modules_to_save", "original_module")


def audit(plan: Plan, model: Any) -> Sequence[Finding]:
    """Compare the quantized layers with the plan."""
    quantization = plan.quantization
    if quantization is None or quantization.method != METHOD or quantization.prequantized:
        return []
    base = base_of(model)
    layers = dict(_linear(base))
    packed = {name: m.weight for name, m in layers.items() if opened(m.weight) is not None}
    planned = str(quantization.options["quant_type"])
    if not packed:
        return [_finding("not-quantized", "no linear layer is quantized by torchao", planned, "none")]
    return [
        *_left(base, layers, packed),
        *_types(packed, planned),
        *_groups(packed, quantization.options["group_size"]),
        *_dtypes(base, packed, plan.dtype),
        *_not_finite(packed),
    ]


def opened(parameter: Any) -> Opened | None:
    """The tensors of a parameter that torchao quantized; None for another one."""
    if not type(parameter).__module__.startswith("torchao."):
        return None
    names, _ = parameter.__tensor_flatten__()
    parts = {name: getattr(parameter, name) for name in names}
    data = parts.pop("qdata")
    return Opened(
        data=data, constants=tuple(parts.values()), count=int(parameter.numel()), shape=tuple(parameter.shape)
    )


def compare(parameter: Any, stored: Any) -> str | None:
    """Quantize the file's rows again, and compare codes and scales; None for what isn't torchao's.

    A scale is that of a row or a part of one, so the first rows can be compared without the rest.
    """
    if opened(parameter) is None or not stored.is_floating_point() or stored.ndim != 2:
        return None
    rows, group = stored.shape[0], parameter.block_size[-1]
    # Its own dtype, which the audit checks: what a class keeps in float32 was quantized from float32.
    values = stored.to(parameter.dtype).to(parameter.device)
    if CLASSES.get(type(parameter).__name__) == INT8:
        from torchao.quantization import Int8Tensor
        from torchao.quantization.granularity import PerGroup

        again = Int8Tensor.from_hp(values, PerGroup(group))
        held, scales, new = parameter.qdata[:rows], parameter.scale[:rows], again.scale
        codes = again.qdata
    else:
        again = type(parameter).from_hp(values, [1, group])
        tiles = rows // TILE  # a tile that isn't whole has rows in it that the sample hasn't
        held, codes = parameter.qdata[:tiles], again.qdata[:tiles]
        scales, new = parameter.scale_and_zero[:, :rows], again.scale_and_zero[:, :rows]
    differ = int((held != codes).sum())
    if differ:
        return f"{differ} of {held.numel()} quantized values differ"
    off = int((scales != new).sum())
    return f"{off} of {scales.numel()} scales differ" if off else ""


def _linear(base: Any) -> Iterator[tuple[str, Any]]:
    """Every linear layer of the base that torchao would take, adapters' own aside."""
    import torch

    passed_over = torch.nn.modules.linear.NonDynamicallyQuantizableLinear
    for name, module in base.named_modules():
        if isinstance(module, torch.nn.Linear) and not isinstance(module, passed_over):
            path = name.removesuffix(".base_layer")
            if not any(part in path for part in ADAPTERS):
                yield path, module


def _left(base: Any, layers: dict[str, Any], packed: dict[str, Any]) -> Iterator[Finding]:
    from transformers.quantizers.quantizers_utils import should_convert_module

    kept = getattr(getattr(base, "hf_quantizer", None), "modules_to_not_convert", None)
    left = [n for n in layers if n not in packed and should_convert_module(f"{n}.weight", kept)]
    if left:
        yield _finding(
            "layers-left",
            f"{len(left)} linear layers stay as they were, such as {left[0]}",
            f"{len(left) + len(packed)} quantized",
            f"{len(packed)}",
        )


def _types(packed: dict[str, Any], planned: str) -> Iterator[Finding]:
    found = {CLASSES.get(type(p).__name__, type(p).__name__) for p in packed.values()}
    if found != {planned}:
        yield _finding(
            "quant-type", "layers are quantized to another type", planned, ", ".join(sorted(found))
        )


def _groups(packed: dict[str, Any], planned: int | None) -> Iterator[Finding]:
    wrong = {n: p.block_size[-1] for n, p in packed.items() if p.block_size[-1] != (planned or p.shape[-1])}
    if wrong:
        yield _finding(
            "group-size",
            f"{len(wrong)} layers have scales of other groups, such as {next(iter(wrong))}",
            "a row" if planned is None else str(planned),
            ", ".join(map(str, sorted(set(wrong.values())))),
        )


def _dtypes(base: Any, packed: dict[str, Any], planned: str) -> Iterator[Finding]:
    """A layer computes in its weight's first dtype: the planned one, or float32 where the class keeps it."""
    kept = (*(base._keep_in_fp32_modules or ()), *(base._keep_in_fp32_modules_strict or ()))
    found = {name: str(p.dtype).removeprefix("torch.") for name, p in packed.items()}
    wrong = {
        name: dtype
        for name, dtype in found.items()
        if dtype != planned and not (dtype == "float32" and any(part in name.split(".") for part in kept))
    }
    if wrong:
        yield _finding(
            "compute-dtype",
            f"{len(wrong)} layers compute in another dtype, such as {next(iter(wrong))}",
            planned,
            ", ".join(sorted(set(wrong.values()))),
        )


def _not_finite(packed: dict[str, Any]) -> Iterator[Finding]:
    wrong = [
        name
        for name, parameter in packed.items()
        if (parts := opened(parameter))
        and any(not bool(c.isfinite().all()) for c in parts.constants if c.device.type != "meta")
    ]
    if wrong:
        yield _finding(
            "scales-not-finite",
            f"{len(wrong)} layers have scales that are infinite or no numbers, such as {wrong[0]}",
            "finite scales",
            f"{len(wrong)} layers without",
        )
