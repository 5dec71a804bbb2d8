"""Compare a sample of the loaded weights with the bytes in the checkpoint's files, right after loading."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from loadkit.audit.local_shard import Part, part_of
from loadkit.errors import Finding
from loadkit.hooks import hookspecs as hooks
from loadkit.hooks.manager import PluginManager
from loadkit.schema.plans import Plan

__all__ = ["OTHER_VALUES", "SAMPLED", "VALUES", "compare_with_files"]

_finding = partial(Finding, "weights", "loadkit")

OTHER_VALUES = "other-values"
"""The code of what doesn't hold what the files have."""

SAMPLED, VALUES = 16, 32_768
"""How many tensors are compared, and how many first values of each: about a megabyte in all."""


class Sampled(NamedTuple):
    """One tensor of the model, and the beginning of what the file has for it: whole rows."""

    name: str
    module: Any
    parameter: Any
    rows: Any


def compare_with_files(
    plan: Plan, files: Sequence[Path], model: Any, manager: PluginManager
) -> list[Finding]:
    """Hold a sample of tensors against the files; a note where nothing could be compared.

    A quantized tensor is compared by the plugin that quantized it, which quantizes the file's values again.
    """
    different, compared, hook = [], 0, hooks.loadkit_compare_tensor
    for name, module, parameter, rows in _sample(files, model):
        answer = manager.first(hook, plan=plan, module=module, parameter=parameter, stored=rows)
        difference = _difference(parameter, rows) if answer is None else answer
        compared += difference is not None
        if difference:
            different.append(f"{name} ({difference})")
    if different:
        return [
            _finding(
                "other-values",
                f"{len(different)} of {compared} compared tensors don't hold what the files have: {', '.join(different[:3])}",
                "the values in the files",
                "other values",
                remedy="something changed the weights while they were loaded; load again, and tell transformers' authors if it stays so",
            )
        ]
    if not compared and plan.checkpoint.weight_format == "safetensors":
        return [
            _finding(
                "not-compared",
                "no tensor could be compared with the files: all have other names or shapes in the model, or ZeRO-3 has split them",
                severity="note",
            )
        ]
    return []


def _sample(files: Sequence[Path], model: Any) -> Iterator[Sampled]:
    """Tensors spread evenly over the model, of those that the files have under the same name."""
    from safetensors import safe_open

    homes: dict[str, Path] = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            homes.update(dict.fromkeys(file.keys(), path))
    if not homes:
        return
    prefix = f"{model.base_model_prefix}."
    named = {}
    for name, parameter in model.named_parameters():
        candidates = (name, name.removeprefix(prefix), f"{prefix}{name}")
        if (stored := next((c for c in candidates if c in homes), None)) is not None:
            named[stored] = (name, parameter)
    chosen = _spread(sorted(named))
    for path in files:
        here = sorted(stored for stored in chosen if homes[stored] == path)
        if not here:
            continue
        with safe_open(path, framework="pt") as file:
            for stored in here:
                name, parameter = named[stored]
                part = part_of(parameter)
                if part is not None:
                    module = model.get_submodule(name.rpartition(".")[0])
                    yield Sampled(name, module, part.tensor, _beginning(file.get_slice(stored), part))


def _spread(names: Sequence[str]) -> set[str]:
    step = max(1, len(names) / SAMPLED)
    return {names[int(i * step)] for i in range(min(SAMPLED, len(names)))} | set(names[-1:])


def _beginning(tensor: Any, part: Part) -> Any:
    """As many whole first rows as hold about `VALUES` values, of the part that is here."""
    shape = tensor.get_shape()
    rows = max(1, VALUES // max(math.prod(shape[1:]), 1))
    if not part.start or len(part.start) != len(shape):
        return tensor[:rows] if shape else tensor[...]
    first, *others = (slice(a, a + n) for a, n in zip(part.start, part.tensor.shape, strict=True))
    return tensor[(slice(first.start, min(first.start + rows, first.stop)), *others)]


def _difference(parameter: Any, rows: Any) -> str | None:
    """What is different; "" for nothing, None where the two can't be compared."""
    import torch

    parameter = parameter.detach()
    packed = not parameter.is_floating_point()
    if parameter.device.type == "meta" or parameter.shape[1:] != rows.shape[1:]:
        return None
    if packed and parameter.dtype != rows.dtype:
        return None  # quantized here, by a plugin that doesn't compare
    held = parameter[: rows.shape[0]].to("cpu") if rows.ndim else parameter.to("cpu")
    if held.shape != rows.shape:
        return None
    expected = rows.to(held.dtype)
    if torch.equal(held, expected):
        return ""
    if packed:
        return f"{int((held != expected).sum())} of {held.numel()} codes differ"
    gap = (held.double() - expected.double()).abs().nan_to_num(nan=0.0)
    same_nan = torch.equal(torch.isnan(held), torch.isnan(expected))
    return "" if same_nan and not bool((gap > 0).any()) else f"off by up to {float(gap.max()):.3g}"
