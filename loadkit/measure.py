"""What a loaded model consists of, counted."""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

from loadkit.report import Measurements

__all__ = ["measure", "peak_memory"]


def measure(model: Any) -> Measurements:
    """Count modules, bytes and parameters; shared tensors count once.

    Parameters:
        model: a `torch.nn.Module`, with or without an adapter.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    modules: Counter[str] = Counter()
    for module in model.modules():
        if any(True for _ in module.parameters(recurse=False)):
            modules[type(module).__name__] += 1
    by_dtype: Counter[str] = Counter()
    devices: Counter[str] = Counter()
    parameters = trainable = 0
    for tensor in [*model.parameters(), *model.buffers()]:
        size = tensor.numel() * tensor.element_size()
        by_dtype[str(tensor.dtype).removeprefix("torch.")] += size
        devices[str(tensor.device)] += size
    for parameter in model.parameters():
        count = _unpacked(parameter)
        parameters += count
        trainable += count if parameter.requires_grad else 0
        for constant in _constants(parameter):
            size = constant.numel() * constant.element_size()
            by_dtype[str(constant.dtype).removeprefix("torch.")] += size
            devices[str(constant.device)] += size
    return Measurements(
        model_class=type(base).__name__,
        modules=dict(modules.most_common()),
        bytes_by_dtype=dict(by_dtype.most_common()),
        parameters=parameters,
        trainable=trainable,
        devices=dict(devices.most_common()),
        footprint=sum(by_dtype.values()),
    )


def _unpacked(parameter: Any) -> int:
    """How many weights a parameter stands for: a quantized one tells the shape it was packed from."""
    state = getattr(parameter, "quant_state", None)
    shape = getattr(state, "shape", None)
    if shape is None:
        return int(parameter.numel())
    count = 1
    for size in shape:
        count *= int(size)
    return count


def _constants(parameter: Any) -> list[Any]:
    """Tensors that a quantized parameter carries beside its data: scales, codes, nested scales."""
    state = getattr(parameter, "quant_state", None)
    nested = getattr(state, "state2", None)
    found = [getattr(s, name, None) for s in (state, nested) if s is not None for name in ("absmax", "code")]
    found += [
        getattr(parameter, name, None)
        for name in ("SCB", "CB")
        if getattr(parameter, name, None) is not parameter.data
    ]
    offset = getattr(state, "offset", None)
    seen = {parameter.data_ptr()}
    kept = []
    for tensor in [*found, offset]:
        if tensor is not None and hasattr(tensor, "data_ptr") and tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            kept.append(tensor)
    return kept


def peak_memory() -> dict[str, int]:
    """Bytes: the process's highest resident set so far ("host"), and each CUDA device's highest allocation."""
    import torch

    found: dict[str, int] = {}
    if sys.platform != "win32":
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found["host"] = peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            found[f"cuda:{index}"] = torch.cuda.max_memory_allocated(index)
    return found
