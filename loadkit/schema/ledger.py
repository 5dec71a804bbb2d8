"""Everything that was asked, and what became of each: the plan's answer to "and where did my option go?"."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

__all__ = ["Disposition", "Requested"]

Disposition = Literal["decided", "passed on", "overruled", "left to the trainer", "no counterpart"]
"""What became of something asked. What nobody took up is none of these: it is a problem of the plan."""


class Requested(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was asked, wherever from, and what became of it.

    Parameters:
        name: the option, "option.field" for a field of a mapping, or the recipe's key.
        value: as plain data; None for a recipe's key that stays the trainer's.
        by: who asked.
        disposition: what became of it.
        where: the stage that took it up, or the keyword argument that it is passed on as; "" for none.
        because: for what was overruled or has no counterpart: by whom, and why.
    """

    name: str
    value: Any
    by: str
    disposition: Disposition
    where: str = ""
    because: str = ""

    @property
    def differs(self) -> bool:
        """Whether what was asked isn't what will be."""
        return self.disposition in ("overruled", "no counterpart")

    def __str__(self) -> str:
        value = "" if self.value is None else f"={self.value}"
        where = f" ({self.where})" if self.where else ""
        because = f": {self.because}" if self.because else ""
        return f"{self.name}{value} by {self.by}: {self.disposition}{where}{because}"
