"""How quantities read."""

from __future__ import annotations

__all__ = ["size"]


def size(count: int) -> str:
    """Bytes in the largest binary unit that leaves a number above one."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.2f} GiB"
