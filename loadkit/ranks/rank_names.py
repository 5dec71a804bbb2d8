"""Ranks in a sentence: "rank 3", "ranks 0, 2"."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["named"]


def named(ranks: Iterable[int]) -> str:
    """The ranks by their numbers, lowest first."""
    numbers = sorted(ranks)
    return f"rank{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
