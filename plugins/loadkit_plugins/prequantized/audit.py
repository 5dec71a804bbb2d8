"""Whether the weights are in memory what the plan says of their stored format."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from loadkit import Finding, Plan, Quantization
from loadkit.plugins import base_of, is_packed
from loadkit_plugins.prequantized.settings import holds_floats, method_of

__all__ = ["audit", "compare"]

_finding = partial(Finding, "quantization", "prequantized")

ROUNDING = 2**-6
"""How far a product with a scale may be from another, relatively: bfloat16 has eight bits."""

BLOCK = 32
"""Values along a row that surely share a scale, of weights in eight bits."""


def audit(plan: Plan, model: Any) -> Sequence[Finding]:
    """Hold the classes and dtypes of parameters against the planned format."""
    quantization = plan.quantization
    if quantization is None or not quantization.prequantized or quantization.method == "bitsandbytes":
        return []
    if plan.adapters is not None and plan.adapters.dequantize:
        return []  # a phase of its own turns it back
    base = base_of(model)
    packed = [name for name, tensor in _tensors(base) if _is_packed(tensor)]
    quantizer = getattr(base, "hf_quantizer", None)
    config = getattr(quantizer, "quantization_config", None)
    method = getattr(config, "quant_method", None)
    found = str(getattr(method, "value", method))
    if quantization.packed:
        return [*_kept(quantization, packed, found), *_set(quantization, config)]
    table = method_of(quantization)
    if table is not None and holds_floats(table, quantization.options) and found == quantization.method:
        quantizer = None  # its layers go on quantizing what they hold
    return list(_back(plan, packed, found if quantizer is not None else ""))


def _kept(quantization: Quantization, packed: Sequence[str], method: str) -> Iterator[Finding]:
    if not packed:
        yield _finding(
            "not-quantized",
            "no weight is in the stored format: transformers has turned all of them back",
            f"{quantization.method}, as stored",
            "floating point",
        )
    elif method != quantization.method:
        yield _finding(
            "other-method", "another quantizer has loaded the weights", quantization.method, method or "none"
        )


def _set(quantization: Quantization, config: Any) -> Iterator[Finding]:
    for name, value in quantization.settings.items():
        found = getattr(config, name, None)
        if str(getattr(found, "value", found)) != str(value):
            yield _finding(
                "stored-setting", f"{name} isn't what a training load needs", str(value), str(found)
            )


def _back(plan: Plan, packed: Sequence[str], method: str) -> Iterator[Finding]:
    if packed:
        yield _finding(
            "not-dequantized",
            f"{len(packed)} tensors are still in the stored format, such as {packed[0]}",
            plan.dtype,
            f"{len(packed)} packed",
        )
    elif method:
        yield _finding(
            "not-dequantized",
            "the model still calls itself quantized, so that a trainer refuses it",
            "none",
            method,
        )


def _tensors(base: Any) -> Iterator[tuple[str, Any]]:
    yield from base.named_parameters()
    yield from ((name, buffer) for name, buffer in base.named_buffers() if buffer.ndim > 1)


def _is_packed(tensor: Any) -> bool:
    """Whether it holds codes: integers (an index or a mask of the model's own aside), one byte floats, or a
    class of its own."""
    import torch

    if tensor.dtype in (torch.bool, torch.int64):
        return False
    own = isinstance(tensor, torch.nn.Parameter) and is_packed(tensor)
    return own or not tensor.is_floating_point() or tensor.element_size() == 1


def compare(plan: Plan, parameter: Any, stored: Any) -> str | None:
    """Compare weights of eight bits: code by code where they stayed, else up to the scale of their block."""
    quantization = plan.quantization
    if quantization is None or not quantization.prequantized or quantization.method == "bitsandbytes":
        return None
    if stored.element_size() != 1 or stored.ndim != 2:
        return None
    if parameter.shape[1:] != stored.shape[1:] or parameter.device.type == "meta":
        return None
    import torch

    held = parameter.detach()[: stored.shape[0]].to("cpu")
    if quantization.method == "bitnet" and held.is_floating_point():
        differ = int((held.float() != (stored & 3).float() - 1).sum())  # a byte's first value is of its row
        return f"{differ} of {held.numel()} values differ" if differ else ""
    if held.dtype == stored.dtype:
        differ = int((held.view(torch.uint8) != stored.view(torch.uint8)).sum())
        return f"{differ} of {held.numel()} codes differ" if differ else ""
    if quantization.packed or not held.is_floating_point():
        return None
    whole = stored.shape[1] // BLOCK * BLOCK
    if not whole:
        return None
    codes = stored.float()[:, :whole].reshape(stored.shape[0], -1, BLOCK)
    values = held.float()[:, :whole].reshape(codes.shape)
    largest = codes.abs().argmax(-1, keepdim=True)
    scale = values.gather(-1, largest) / codes.gather(-1, largest).where(
        codes.gather(-1, largest) != 0, torch.ones(())
    )
    off = (values - codes * scale).abs() > ROUNDING * values.abs().amax(-1, keepdim=True)
    differ = int(off.sum())
    return f"{differ} of {values.numel()} values aren't the file's times a scale" if differ else ""
