"""What a loaded model consists of, counted."""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from loadkit.report import Measurements

__all__ = ["measure", "peak_memory"]

ADAPTED = re.compile(r"lora_|modules_to_save|trainable_tokens")
"""Parameters in the paths of PEFT's own."""


def measure(model: Any) -> Measurements:
    """Count modules, bytes and parameters; shared tensors count once.

    Parameters:
        model: a `torch.nn.Module`, with or without an adapter.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    named = list(model.named_parameters())
    modules = dict(model.named_modules())
    kinds = Counter(type(modules[home]).__name__ for home in {name.rpartition(".")[0] for name, _ in named})
    constants = [tensor for _, parameter in named for tensor in _constants(parameter)]
    held: Counter[tuple[Any, Any]] = Counter()
    for tensor in (*(parameter for _, parameter in named), *model.buffers(), *constants):
        held[tensor.dtype, tensor.device] += tensor.numel() * tensor.element_size()
    by_dtype: Counter[str] = Counter()
    devices: Counter[str] = Counter()
    for (dtype, device), count in held.items():
        by_dtype[str(dtype).removeprefix("torch.")] += count
        devices[str(device)] += count
    counts = [(_unpacked(parameter), parameter.requires_grad) for _, parameter in named]
    return Measurements(
        model_class=type(base).__name__,
        modules=dict(kinds.most_common()),
        bytes_by_dtype=dict(by_dtype.most_common()),
        parameters=sum(count for count, _ in counts),
        trainable=sum(count for count, trains in counts if trains),
        devices=dict(devices.most_common()),
        footprint=sum(by_dtype.values()),
        unquantized=_unquantized(base),
    )


def _unquantized(base: Any) -> dict[str, int]:
    """Of a quantized model: bytes that stay as they are, by reason, largest first; the adapters' own aside."""
    import torch

    named = [(name, p) for name, p in base.named_parameters() if not ADAPTED.search(name)]
    if not any(_is_packed(parameter) for _, parameter in named):
        return {}
    modules = dict(base.named_modules())
    head = getattr(base.get_output_embeddings(), "weight", None)
    found: Counter[str] = Counter()
    for name, parameter in named:
        module = modules[name.rpartition(".")[0]]
        if _is_packed(parameter):
            continue
        classifier = (
            head is None
            and type(module) is torch.nn.Linear
            and name.replace(".original_module", "").count(".") == 1
        )
        if classifier or (parameter is head and not isinstance(module, torch.nn.Embedding)):
            reason = "head"
        elif "Embedding" in type(module).__name__:
            reason = "embeddings"
        elif type(module).__name__.endswith("Norm"):
            reason = "norms"
        elif parameter.ndim > 2 and not isinstance(module, torch.nn.modules.conv._ConvNd):
            reason = "fused experts"
        elif type(module) is torch.nn.Linear and parameter.ndim > 1:
            reason = "skipped"
        else:
            reason = (
                "subclasses of Linear"
                if isinstance(module, torch.nn.Linear) and parameter.ndim > 1
                else "other"
            )
        found[reason] += parameter.numel() * parameter.element_size()
    return dict(found.most_common())


def _is_packed(parameter: Any) -> bool:
    """Whether a parameter is quantized: it has a class of its own, as bitsandbytes' and torchao's do, or holds integers."""
    import torch

    plain = type(parameter) is torch.nn.Parameter and type(parameter.data) is torch.Tensor
    return not plain or not parameter.is_floating_point()


def _unpacked(parameter: Any) -> int:
    """How many weights a parameter stands for: a quantized one tells the shape it was packed from."""
    state = parameter.__dict__.get("quant_state")
    shape = getattr(state, "shape", None)
    if shape is None:
        return int(parameter.numel())
    count = 1
    for size in shape:
        count *= int(size)
    return count


def _constants(parameter: Any) -> list[Any]:
    """Tensors that a quantized parameter carries beside its data: scales, codes, nested scales."""
    if not parameter.__dict__:
        return []  # a plain parameter
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

    found: dict[str, int] = {"host": host} if (host := _highest_resident()) else {}
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            found[f"cuda:{index}"] = torch.cuda.max_memory_allocated(index)
    return found


def _highest_resident() -> int:
    """Bytes; 0 where the system doesn't tell. Linux's ru_maxrss counts the parent's memory at the fork too, VmHWM doesn't."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return 0
