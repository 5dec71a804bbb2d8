"""Which tensors of a model are looked at in one load: one of each kind, spread over layers."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence

__all__ = ["SAMPLED", "choose", "kind_of", "pick"]

SAMPLED = 24
"""How many tensors are looked at where there are fewer kinds."""

PARTS = 3
"""A model's beginning, middle and end, which kinds take in turns."""


def kind_of(name: str) -> str:
    """A tensor's kind: its name without the numbers of layers, experts and the like."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def choose(names: Iterable[str], seed: str) -> list[str]:
    """Choose one tensor of each kind, and more where there are few kinds.

    Parameters:
        names: the tensors, in the model's order.
        seed: what the choice depends on: another one chooses other layers.

    Returns:
        At least one name of each kind, and `SAMPLED` in all where there are so many.
    """
    kinds: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        kinds[kind_of(name)].append(name)
    wanted = min(SAMPLED, sum(map(len, kinds.values())))
    chosen: dict[str, None] = {}
    first = _number(seed, "")
    for turn in range(max(map(len, kinds.values()), default=0)):
        for place, (kind, members) in enumerate(kinds.items()):
            left = [name for name in members if name not in chosen]
            if left and (turn == 0 or len(chosen) < wanted):
                chosen[_in_part(left, (first + place + turn) % PARTS, f"{seed} {turn} {kind}")] = None
        if len(chosen) >= wanted:
            break
    return list(chosen)


def pick(names: Sequence[str], seed: str) -> str:
    """One of several names."""
    return names[_number(seed, "pick") % len(names)]


def _in_part(names: Sequence[str], part: int, seed: str) -> str:
    start = len(names) * part // PARTS
    stop = max(len(names) * (part + 1) // PARTS, start + 1)
    return pick(names[start:stop], seed)


def _number(seed: str, what: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed} {what}".encode(), digest_size=8).digest(), "big")
