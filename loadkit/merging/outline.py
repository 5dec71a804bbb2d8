"""What the merged checkpoint's files will hold: every tensor, where it comes from, and how large it is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import msgspec

from loadkit.errors import Problem
from loadkit.facts.checkpoint.safetensors_header import PREFIX_BYTES
from loadkit.merging.layout import Group
from loadkit.merging.problems import merge_problem
from loadkit.merging.values import Values
from loadkit.schema.dtypes import SAFETENSORS_FLOATS
from loadkit.text.suggest import some_of

__all__ = ["OutFile", "OutTensor", "outline"]

How = Literal["copied", "merged", "replaced", "untied"]

OURS = {name: stored for stored, name in SAFETENSORS_FLOATS.items()}
"""torch's names of floating-point dtypes to safetensors'."""

SIZES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}
"""Bytes of one value, of the dtypes that a merge writes."""


class OutTensor(NamedTuple):
    """A tensor that will be written.

    Parameters:
        name: in the file.
        dtype: safetensors' name of it.
        shape: its shape.
        nbytes: its bytes.
        how: "copied" from the base's file, "merged", "replaced" by one of the adapter's, or "untied": the
            base's own, which was one with another tensor before.
        target: its name in the model; "" for one that the model has no place for.
        group: the tensors of the files that it is made with; None where the files don't have it.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    how: How
    target: str = ""
    group: Group | None = None


class OutFile(NamedTuple):
    """A file that will be written: its name, its tensors in the order of their bytes, and its header."""

    name: str
    tensors: tuple[OutTensor, ...]
    header: bytes

    @property
    def nbytes(self) -> int:
        """The whole file's bytes."""
        return PREFIX_BYTES + len(self.header) + sum(tensor.nbytes for tensor in self.tensors)


def outline(
    values: Values, shapes: Mapping[str, Any], dtype: str, stored_dtype: str, kept: Any
) -> tuple[list[OutFile], list[Problem]]:
    """Every file of the merged checkpoint, and why some tensors can't be written.

    Parameters:
        values: the tensors.
        shapes: the skeleton's: name in the model to its tensor on the meta device.
        dtype: torch's name of the dtype that floating-point tensors get; "" for the one each is stored in.
        stored_dtype: what most of the base is stored in, for tensors that it doesn't have.
        kept: a predicate: which tensors of the model stay in float32 whatever is asked.
    """
    files, layout, moves = values.files, values.layout, values.ties.moves
    groups = {name: group for group in layout.groups.values() for name in group.stored}
    headers = {name: files.header(name) for name in files.homes}
    tensors: dict[str, list[OutTensor]] = {name: [] for name in files.files}
    problems: list[Problem] = []
    for name, home in files.homes.items():
        group, header = groups.get(name), headers[name]
        targets = group.targets if group is not None else ()
        moved = [t for t in targets if t in moves or t in values.more_rows]
        wide = any(kept(target) for target in targets)
        kind = header.dtype if wide or not dtype or header.dtype not in SIZES else OURS[dtype]
        if group is None or not moved:
            nbytes = header.nbytes if kind == header.dtype else math.prod(header.shape) * SIZES[kind]
            target = targets[0] if targets else ""
            tensors[home].append(OutTensor(name, kind, header.shape, nbytes, "copied", target, group))
            continue
        if header.dtype not in SIZES:
            problems.append(_not_floating(name, header.dtype))
        elif fault := layout.returns(group, headers):
            problems.append(_cannot_return(name, fault))
        how: How = (
            "replaced" if all(t not in moves or moves[t].how == "replaced" for t in moved) else "merged"
        )
        shape = tuple(shapes[targets[0]].shape) if group.converter is None else header.shape
        tensors[home].append(_tensor(name, kind, shape, how, targets[0], group))
    last = list(files.files)[-1]
    for target in dict.fromkeys([*values.ties.apart, *moves]):
        if target in layout.groups or _with_its_partner(target, values):
            continue
        kind = OURS[dtype or _dtype_beside(values, target) or stored_dtype or "float32"]
        names = list(layout.to_stored({target: shapes[target]}))
        how = moves[target].how if target in moves else "untied"
        if len(names) != 1 or names[0] in files.homes:
            problems.append(_cannot_return(target, f"it would be saved as {some_of(names)}"))
        elif target in moves and moves[target].how == "merged" and target not in values.ties.partner:
            problems.append(_lacking(target))
        else:
            tensors[last].append(_tensor(names[0], kind, tuple(shapes[target].shape), how, target, None))
    return [_file(name, tensors[name], files.files[name].metadata) for name in files.files], problems


def _with_its_partner(target: str, values: Values) -> bool:
    """Whether a tensor that the files lack stays one with another that they have."""
    partner = values.ties.partner.get(target)
    return partner is not None and partner in values.layout.groups and target not in values.ties.apart


def _dtype_beside(values: Values, target: str) -> str:
    """The stored dtype of what a tensor was tied to; "" for none."""
    group = values.layout.groups.get(values.ties.partner.get(target, ""))
    return (
        ""
        if group is None
        else SAFETENSORS_FLOATS.get(values.files.header(next(iter(group.stored))).dtype, "")
    )


def _tensor(
    name: str, dtype: str, shape: tuple[int, ...], how: How, target: str, group: Group | None
) -> OutTensor:
    return OutTensor(name, dtype, shape, math.prod(shape) * SIZES.get(dtype, 1), how, target, group)


def _file(name: str, tensors: list[OutTensor], metadata: Mapping[str, str]) -> OutFile:
    """Tensors in the order that safetensors writes: the wider dtypes first, each aligned to its own size."""

    def width(tensor: OutTensor) -> float:
        return tensor.nbytes / max(math.prod(tensor.shape), 1)

    ordered = tuple(sorted(tensors, key=lambda tensor: (-width(tensor), tensor.name)))
    return OutFile(name, ordered, _header(ordered, metadata))


def _header(tensors: tuple[OutTensor, ...], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    for tensor, (start, stop) in zip(tensors, _spans(tensors), strict=True):
        entries[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": (start, stop)}
    header = msgspec.json.encode(entries)
    return header + b" " * (-len(header) % 8)


def _spans(tensors: tuple[OutTensor, ...]) -> Iterator[tuple[int, int]]:
    at = 0
    for tensor in tensors:
        yield at, at + tensor.nbytes
        at += tensor.nbytes


def _not_floating(name: str, dtype: str) -> Problem:
    return merge_problem(
        "merge-stored",
        f"{name} is to be moved, and is stored as {dtype}, to which a delta can't be added",
        "merge into the base that isn't quantized: --base MODEL",
    )


def _cannot_return(name: str, fault: str) -> Problem:
    return merge_problem(
        "merge-layout",
        f"{name} is to be moved, and the model's tensor can't be turned back into what the base's files have: {fault}",
        "load the adapter with merge_adapter=True and save that, which writes the model's own layout",
    )


def _lacking(target: str) -> Problem:
    return merge_problem(
        "merge-layout",
        f"{target} is to be moved, and isn't in the base's files",
        "check that the base's files are complete, and that this is the base the adapter was made for",
    )
