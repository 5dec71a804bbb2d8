"""What a loaded model says of a setting, beside what was planned for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

__all__ = ["Reading", "alike"]


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """One setting as it was planned, and as it was read from the loaded model.

    Parameters:
        stage: the stage that decided it.
        names: what it is called where it is asked for: an option, or "option.field" for a mapping's field.
        where: where it was read, such as "peft_config['default'].r".
        planned: the plan's value, as plain data.
        effective: the model's, as plain data; a list of all of them where layers differ.
        verbatim: whether what is asked is the value itself, so that a demand is compared too: not for
            "all-linear", which stands for others.
        code: the code of the finding where the two differ; "" for "not-as-planned".
    """

    stage: str
    names: tuple[str, ...]
    where: str
    planned: Any
    effective: Any
    verbatim: bool = True
    code: str = ""

    @property
    def differs(self) -> bool:
        """Whether the model has another value than was planned."""
        return not alike(self.planned, self.effective)


def alike(one: Any, other: Any) -> bool:
    """Whether two plain values are the same setting: lists in any order, numbers by their value."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(alike(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        names = all(isinstance(each, str) for each in (*one, *other))  # of which one given twice is given
        return set(one) == set(other) if names else sorted(map(str, one)) == sorted(map(str, other))
    if isinstance(one, bool) is not isinstance(other, bool):
        return False
    return bool(one == other)
