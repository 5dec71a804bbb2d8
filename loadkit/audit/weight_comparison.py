"""Compare the loaded weights with the bytes in the checkpoint's files, right after loading."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from loadkit.audit.local_shard import Part, part_of
from loadkit.audit.model_access import is_packed
from loadkit.audit.sampling import choose, pick
from loadkit.audit.stored_names import Stored, as_stored, stored_name
from loadkit.audit.stored_units import stored_units
from loadkit.errors import Finding
from loadkit.hooks import hookspecs as hooks
from loadkit.hooks.manager import PluginManager
from loadkit.schema.plans import Plan
from loadkit.schema.quantized_weights import Unit
from loadkit.schema.reports import Loading
from loadkit.text.suggest import some_of

__all__ = ["OTHER_VALUES", "VALUES", "compare_with_files"]

OTHER_VALUES = "other-values"
"""The code of what doesn't hold what the files have."""

_finding = partial(Finding, "weights", "loadkit")

VALUES = 32_768
"""How many first values of a sampled tensor are compared; a full comparison takes all."""


class Pair(NamedTuple):
    """A tensor of the model, and what the file has for it: whole rows, the first ones or all.

    `held` is None where this process has no piece of it that could be compared.
    """

    name: str
    module: Any
    held: Any
    rows: Any


def compare_with_files(
    plan: Plan, files: Sequence[Path], model: Any, manager: PluginManager, loading: Loading, *, full: bool
) -> list[Finding]:
    """Hold tensors against the files: one of each kind, or all.

    A quantized tensor is compared by the plugin that quantized it, which quantizes the file's values again.

    Parameters:
        files: the safetensors files that are here.
        loading: what `from_pretrained` said; what it found missing or of another shape isn't compared.
        full: whether every tensor is compared, and all of it.
    """
    different, alike, left, hook = [], 0, [], hooks.loadkit_compare_tensor
    for name, module, held, rows in _pairs(plan, files, model, loading, manager, full=full):
        if held is None:
            continue
        if rows is None:
            left.append(name)
            continue
        answer = manager.first(hook, plan=plan, module=module, parameter=held, stored=rows)
        unit = isinstance(held, Unit)
        difference = _difference(held, rows) if answer is None and not unit else answer
        if difference is None:
            left.append(name)
        elif difference:
            different.append(f"{name} ({difference})")
        else:
            alike += 1
    compared = len(different) + alike
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
    if plan.checkpoint.weight_format != "safetensors" or not (left or not compared):
        return []
    if not compared:
        said = "no tensor could be compared with the files: all have other names or shapes in the model, or ZeRO-3 has split them"
    else:
        said = f"{len(left)} of {len(left) + compared} tensors couldn't be compared with the files, as no plugin knows how: {some_of(left)}"
    return [_finding("not-compared", said, severity="note")]


def _pairs(
    plan: Plan, files: Sequence[Path], model: Any, loading: Loading, manager: PluginManager, *, full: bool
) -> Iterator[Pair]:
    """Tensors of the model beside the files'."""
    from safetensors import safe_open

    with ExitStack() as stack:
        opened = {path: stack.enter_context(safe_open(path, framework="pt")) for path in files}
        files_of = {name: file for file in opened.values() for name in file.keys()}  # noqa: SIM118
        if not files_of:
            return
        if plan.quantization is not None:
            decoding: Any = hooks.loadkit_decode_stored
            files_of = manager.first(decoding, plan=plan, files=files_of) or files_of
        paths = {id(file): path for path, file in opened.items()}
        homes = {name: paths[id(getattr(file, "file", file))] for name, file in files_of.items()}
        absent = {*loading.missing, *(text.partition(":")[0] for text in loading.mismatched)}
        parameters = {n: p for n, p in model.named_parameters() if n not in absent}
        chosen = parameters if full else _sample(plan.digest, parameters, homes, model)
        for name in chosen:
            module, parameter = model.get_submodule(name.rpartition(".")[0]), parameters[name]
            hook: Any = hooks.loadkit_open_parameter
            parts = manager.first(hook, plan=plan, parameter=parameter) if is_packed(parameter) else None
            if parts is not None and parts.units > 1 and not _stored_quantized(plan):
                units = stored_units(model, name, parameter, parts, files_of, None if full else VALUES)
                pairs = [Pair(unit.name, module, unit.unit, unit.rows) for unit in units]
                yield from pairs or [Pair(name, module, parameter, None)]
                continue
            for stored in as_stored(model, name, parameter, homes):
                part = part_of(stored.tensor)
                if part is None or stored.name is None:
                    yield Pair(name, module, None if part is None else part.tensor, None)
                    continue
                slices = files_of[stored.name].get_slice(stored.name)
                rows = _rows(slices, part, None if full else VALUES)
                yield Pair(_said(name, stored), module, part.tensor, rows)


def _stored_quantized(plan: Plan) -> bool:
    """Whether the files hold codes, which are compared as they are."""
    return plan.quantization is not None and plan.quantization.prequantized


def _sample(digest: str, parameters: Mapping[str, Any], homes: Mapping[str, Path], model: Any) -> list[str]:
    """One of each kind, and one of each file that none of these is from."""
    chosen = choose(parameters, digest)
    by_file: dict[Path, list[str]] = {path: [] for path in homes.values()}
    for name in parameters:
        if (stored := stored_name(model, name, homes)) is not None:
            by_file[homes[stored]].append(name)
    seen = set(chosen)
    for path, names in by_file.items():
        if names and not seen & set(names):
            chosen.append(pick(names, f"{digest} {path.name}"))
    return chosen


def _said(name: str, stored: Stored) -> str:
    return name if stored.name is None or not stored.piece else f"{name}, {stored.name} in the files"


def _rows(tensor: Any, part: Part, values: int | None) -> Any:
    """As many whole first rows as hold about so many values, of the part that is here; None is for all."""
    shape = tensor.get_shape()
    whole = shape[0] if shape else 1
    rows = whole if values is None else max(1, values // max(math.prod(shape[1:]), 1))
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
