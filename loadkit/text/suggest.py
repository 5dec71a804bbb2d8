"""Suggestions in messages: the nearest of some names, and the first few of many."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["did_you_mean", "nearest_name", "some_of"]


def nearest_name(word: str, names: Iterable[str], *, cutoff: float = 0.6) -> str:
    """The name most like a word, whatever the case; "" where all are less like it than `cutoff` (difflib)."""
    folded = {name.casefold(): name for name in names}
    found = difflib.get_close_matches(word.casefold(), folded, n=1, cutoff=cutoff)
    return folded[found[0]] if found else ""


def did_you_mean(word: str, names: Iterable[str], *, cutoff: float = 0.6) -> str:
    """ " (did you mean 'X'?)" for the nearest of the names; "" where none is near.

    A word of three letters and more that a single name begins with is taken for that name, however much is
    missing: the hint decides nothing.
    """
    every = list(names)
    begun = [name for name in every if len(word) > 2 and name.casefold().startswith(word.casefold())]
    found = begun[0] if len(begun) == 1 else nearest_name(word, every, cutoff=cutoff)
    return f" (did you mean {found!r}?)" if found else ""


def some_of(names: Iterable[str], limit: int = 5) -> str:
    """The first few names, and how many more there are: "a, b and 3 more"."""
    every = list(names)
    shown = ", ".join(every[:limit])
    return f"{shown} and {len(every) - limit} more" if len(every) > limit else shown
