"""The request: what was asked, and by whom each option was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import msgspec

from loadkit.schema.claims import Strength

__all__ = ["Asked", "Fields", "Progress", "Request", "Token", "noting_reads"]

Progress = Callable[[str], None]
"""Called with a short sentence before something that takes long."""

Token = str | bool | None
"""The Hub token, as huggingface_hub takes it."""


_note: ContextVar[Callable[[str], None]] = ContextVar("loadkit_note_read", default=lambda name: None)


@contextmanager
def noting_reads(note: Callable[[str], None]) -> Iterator[None]:
    """Have `note` called with the name of every option, and "option.field", that is read in the block."""
    token = _note.set(note)
    try:
        yield
    finally:
        _note.reset(token)


class Fields(dict[str, Any]):
    """The value of a mapping option: an ordinary dict that notes which of its fields are read.

    Whoever goes through all of them reads all of them.
    """

    def __init__(self, option: str, given: dict[str, Any]) -> None:
        super().__init__(given)
        self._option = option

    def __getitem__(self, key: str) -> Any:
        _note.get()(f"{self._option}.{key}")
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """As a dict's; the field counts as read."""
        _note.get()(f"{self._option}.{key}")
        return super().get(key, default)

    def __iter__(self) -> Iterator[str]:
        for key in super().__iter__():
            _note.get()(f"{self._option}.{key}")
            yield key

    def keys(self) -> Any:
        """As a dict's; every field that is yielded counts as read."""
        return list(self)

    def items(self) -> Any:
        """As a dict's; every field that is yielded counts as read."""
        return [(key, super(Fields, self).__getitem__(key)) for key in self]

    def values(self) -> Any:
        """As a dict's; every field that is yielded counts as read."""
        return [super(Fields, self).__getitem__(key) for key in self]

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(super().items()),)


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """One option of a request: its value as plain data, who asked, and how much that weighs."""

    name: str
    value: Any
    by: str
    strength: Strength

    @property
    def demanded(self) -> bool:
        """Whether the caller asked: a demand is met or refused, never replaced."""
        return self.strength is Strength.YOU

    @property
    def because(self) -> str:
        """A reason for a claim that only repeats the option: "you asked for it"."""
        return "you asked for it" if self.demanded else f"{self.by} prefers it"


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What the user asked for.

    Parameters:
        source: a folder, a Hub id, or an adapter repository.
        profile: the profile's name, or the path of a profile file; "" for none.
        options: the options in force: a caller's hides the recipe's, which hides the profile's.
        hidden: options of the profile or recipe that were hidden so, for the plan to show.
        recipe: the recipe's file; "" for none.
        trainer_keys: keys of the recipe that are the trainer's.
    """

    source: str
    profile: str = ""
    options: dict[str, Asked] = {}
    hidden: tuple[Asked, ...] = ()
    recipe: str = ""
    trainer_keys: tuple[str, ...] = ()

    def asked(self, name: str) -> Asked | None:
        """The option of that name, None where nobody set it. An explicit None counts as not set."""
        found = self.options.get(name)
        if found is None or found.value is None:
            return None
        _note.get()(name)
        return found

    def value(self, name: str, default: Any = None) -> Any:
        """The option's value, or `default` where nobody set it."""
        found = self.asked(name)
        return default if found is None else found.value

    def set_by_profile(self, name: str) -> Asked | None:
        """What the profile wanted for an option that the caller replaced; None where it had no wish."""
        return next((asked for asked in self.hidden if asked.name == name), None)
