"""Whether colours are wanted."""

from __future__ import annotations

import os

__all__ = ["colour_wanted"]


def colour_wanted() -> bool | None:
    """False where NO_COLOR says so, as click doesn't ask it; None leaves it to what is written to."""
    return False if os.environ.get("NO_COLOR") else None
