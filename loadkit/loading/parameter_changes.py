"""What a phase did to a model's parameters, measured by comparing before and after."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from loadkit.schema.reports import Change

__all__ = ["Held", "compare", "take"]


class Held(NamedTuple):
    """One parameter at one moment; the tensor itself is kept, so that its identity stays its own."""

    name: str
    tensor: Any
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


def take(model: Any) -> dict[int, Held]:
    """Every parameter of a `torch.nn.Module` by its identity; shared ones once."""
    return {
        id(p): Held(
            name, p, str(p.dtype).removeprefix("torch."), tuple(p.shape), p.numel() * p.element_size()
        )
        for name, p in model.named_parameters()
    }


def compare(phase: str, before: Mapping[int, Held], after: Mapping[int, Held]) -> list[Change]:
    """What differs between two results of `take`, grouped by what happened."""
    gone = {held.name: held for key, held in before.items() if key not in after}
    pairs: list[tuple[Held | None, Held | None]] = [
        (before.get(key) or gone.pop(held.name, None), held) for key, held in after.items()
    ]
    pairs += [(held, None) for held in gone.values()]
    groups: dict[tuple[str, str], list[tuple[Held | None, Held | None]]] = {}
    for old, new in pairs:
        if (kind := _kind(old, new)) is not None:
            groups.setdefault(kind, []).append((old, new))
    return [
        Change(
            phase=phase,
            kind=kind,
            what=what,
            tensors=len(members),
            bytes_before=sum(old.nbytes for old, _ in members if old),
            bytes_after=sum(new.nbytes for _, new in members if new),
            example=next(held.name for pair in members for held in reversed(pair) if held),
        )
        for (kind, what), members in sorted(groups.items())
    ]


def _kind(old: Held | None, new: Held | None) -> tuple[str, str] | None:
    if old is None:
        return ("added", new.dtype) if new else None
    if new is None:
        return "removed", old.dtype
    if old.dtype != new.dtype:
        return "cast", f"{old.dtype} → {new.dtype}"
    if old.shape != new.shape:
        return "resized", " → ".join("×".join(map(str, held.shape)) for held in (old, new))
    return None
