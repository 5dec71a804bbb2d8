"""How quantities read."""

from __future__ import annotations

__all__ = ["share", "size", "span"]


def size(count: int) -> str:
    """Bytes in the largest binary unit that leaves a number above one."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.2f} GiB"


def share(part: int, whole: int) -> str:
    """A part of a whole in per cent, with as many digits as tell it from nothing and from all."""
    if not whole:
        return "0%"
    percent = 100 * part / whole
    if 0 < percent < 0.01:
        return "under 0.01%"
    digits = 0 if percent >= 10 else 1 if percent >= 1 else 2
    if percent < 100 and round(percent, digits) >= 100:
        return "over 99%"
    return f"{percent:.{digits}f}%"


def span(seconds: float) -> str:
    """A length of time in its largest whole unit."""
    for unit, length in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        count = int(seconds // length)
        if count > 0:
            return f"{count} {unit}{'s' if count > 1 else ''}"
    return "less than a minute"
