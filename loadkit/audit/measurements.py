"""What a loaded model consists of, counted."""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from loadkit.audit.model_access import base_of, is_packed
from loadkit.hooks import hookspecs as hooks
from loadkit.hooks.manager import PluginManager
from loadkit.schema.plans import Plan
from loadkit.schema.quantized_weights import Opened
from loadkit.schema.reports import Measurements

__all__ = ["measure", "peak_memory"]

ADAPTED = re.compile(r"lora_|modules_to_save|trainable_tokens")
"""Parameters in the paths of PEFT's own."""


def measure(plan: Plan, model: Any, manager: PluginManager) -> Measurements:
    """Count modules, bytes and parameters of a model, adapter included; shared tensors count once."""
    base = base_of(model)
    named = list(model.named_parameters())
    modules = dict(model.named_modules())
    kinds = Counter(type(modules[home]).__name__ for home in {name.rpartition(".")[0] for name, _ in named})
    tensors, counts = list(model.buffers()), []
    for _, parameter in named:
        opened: Opened | None = None
        if is_packed(parameter):
            opened = manager.first(hooks.loadkit_open_parameter, plan=plan, parameter=parameter)
        tensors += [parameter] if opened is None else [opened.data, *opened.constants]
        counts.append((opened.count if opened else int(parameter.numel()), parameter.requires_grad))
    by_dtype: Counter[str] = Counter()
    devices: Counter[str] = Counter()
    for tensor in tensors:
        nbytes = tensor.numel() * tensor.element_size()
        by_dtype[str(tensor.dtype).removeprefix("torch.")] += nbytes
        devices[str(tensor.device)] += nbytes
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
    """Of a quantized model: bytes that stay as they are, by reason, largest first; adapters aside."""
    import torch

    named = [(name, p) for name, p in base.named_parameters() if not ADAPTED.search(name)]
    if not any(is_packed(parameter) for _, parameter in named):
        return {}
    modules = dict(base.named_modules())
    head = getattr(base.get_output_embeddings(), "weight", None)
    found: Counter[str] = Counter()
    for name, parameter in named:
        module = modules[name.rpartition(".")[0]]
        if is_packed(parameter):
            continue
        linear = isinstance(module, torch.nn.Linear) and parameter.ndim > 1
        outermost = name.replace(".original_module", "").count(".") == 1
        classifier = head is None and type(module) is torch.nn.Linear and outermost
        if classifier or (parameter is head and not isinstance(module, torch.nn.Embedding)):
            reason = "head"
        elif "Embedding" in type(module).__name__:
            reason = "embeddings"
        elif type(module).__name__.endswith("Norm"):
            reason = "norms"
        elif parameter.ndim > 2 and not isinstance(module, torch.nn.modules.conv._ConvNd):
            reason = "fused experts"
        elif linear:
            reason = "skipped" if type(module) is torch.nn.Linear else "subclasses of Linear"
        else:
            reason = "other"
        found[reason] += parameter.numel() * parameter.element_size()
    return dict(found.most_common())


def peak_memory() -> dict[str, int]:
    """Bytes: the process's highest resident set ("host"), and each CUDA device's highest allocation."""
    import torch

    found: dict[str, int] = {"host": host} if (host := _highest_resident()) else {}
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            found[f"cuda:{index}"] = torch.cuda.max_memory_allocated(index)
    return found


def _highest_resident() -> int:
    """Bytes; 0 where unknown. Linux's ru_maxrss counts the parent's memory at the fork too, VmHWM doesn't."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return 0
