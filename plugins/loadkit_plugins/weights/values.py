"""The values themselves: nothing on meta, nothing that isn't a number, computed buffers as they should be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from loadkit import Finding, Plan

__all__ = ["values"]

_finding = partial(
    Finding,
    "weights",
    "weights",
    remedy="the checkpoint or the library that loaded it is at fault: compare with another copy, or another version",
)

LOOKED_AT = 4096
"""How many of a tensor's first values are looked at: reading all would take as long as loading."""


def values(plan: Plan, model: Any) -> Sequence[Finding]:
    """What is wrong with the tensors of the final model."""
    return [*_on_meta(plan, model), *_not_finite(model), *_buffers(model)]


def _on_meta(plan: Plan, model: Any) -> Iterator[Finding]:
    """Tensors without values, but for those that accelerate keeps on the disk or in main memory, and where
    meta was asked for."""
    device_map = plan.placement.device_map
    if "meta" in {device_map} if isinstance(device_map, str) else "meta" in (device_map or {}).values():
        return
    if "disk" in {str(d) for d in (getattr(model, "hf_device_map", None) or {}).values()}:
        return
    tensors = [*model.named_parameters(), *model.named_buffers()]
    empty = [name for name, tensor in tensors if tensor.device.type == "meta"]
    if empty:
        homes = dict(model.named_modules())
        hooks = {name: getattr(homes[name.rpartition(".")[0]], "_hf_hook", None) for name in empty}
        empty = [name for name, hook in hooks.items() if not getattr(hook, "offload", False)]
    if empty:
        said = f"{len(empty)} tensors have no values (they are on the meta device): {_some(empty)}"
        yield _finding("on-meta", said)


def _not_finite(model: Any) -> Iterator[Finding]:
    import torch

    alike: dict[Any, dict[str, Any]] = {}
    for name, buffer in model.named_buffers():
        if type(buffer) is torch.Tensor and buffer.is_floating_point() and buffer.device.type != "meta":
            beginnings = alike.setdefault((buffer.dtype, buffer.device), {})
            beginnings[name] = buffer.flatten()[:LOOKED_AT].float().clamp(min=0)  # masks may hold -inf
    for name, parameter in model.named_parameters():
        if type(parameter) is not torch.nn.Parameter or type(parameter.data) is not torch.Tensor:
            continue  # packed: who quantized it looks at its scales
        if parameter.is_floating_point() and parameter.device.type != "meta":
            beginnings = alike.setdefault((parameter.dtype, parameter.device), {})
            beginnings[name] = parameter.detach().flatten()[:LOOKED_AT]
    wrong = []
    for beginnings in alike.values():
        if not _finite(torch.cat(list(beginnings.values()))):  # one question to the device, not hundreds
            wrong += [name for name, values in beginnings.items() if not _finite(values)]
    if wrong:
        said = f"{len(wrong)} tensors hold infinite values or none at all: {_some(wrong)}"
        yield _finding("not-finite", said)


def _finite(values: Any) -> bool:
    """Whether all are numbers. torch 2.13 can't say for float8_e4m3fn; four bits hold nothing else."""
    import torch

    if values.dtype == torch.float4_e2m1fn_x2:
        return True
    return bool((values.float() if values.element_size() == 1 else values).isfinite().all())


def _buffers(model: Any) -> Iterator[Finding]:
    """Buffers that aren't saved are computed while the model is built, and on meta they may go wrong.

    Modules without parameters that are built from a config (rotary embeddings) are built again, and compared.
    """
    import torch

    wrong = []
    for name, module in model.named_modules():
        if not module._non_persistent_buffers_set:
            continue
        own = dict(module.named_buffers(recurse=False))
        computed = {key: own[key] for key in module._non_persistent_buffers_set if own.get(key) is not None}
        config = getattr(module, "config", None)
        if not computed or config is None or next(module.parameters(), None) is not None:
            continue
        try:
            fresh = dict(type(module)(config).named_buffers(recurse=False))
        except Exception:  # built in a way of its own: nothing to compare with
            continue
        for key, buffer in computed.items():
            expected = fresh.get(key)
            if expected is None or expected.shape != buffer.shape or buffer.device.type == "meta":
                continue  # grown with the length of what it has seen
            if not torch.allclose(buffer.float().cpu(), expected.float(), rtol=1e-5, atol=1e-7):
                wrong.append(f"{name}.{key}")
    if wrong:
        said = f"{len(wrong)} computed buffers aren't what their config gives: {_some(wrong)}"
        yield _finding("computed-buffers", said)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
