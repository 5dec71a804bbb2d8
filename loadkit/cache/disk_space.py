"""How much of a disk loadkit's cache may take, and whether there is that much."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from loadkit.errors import LoadkitError
from loadkit.text.units import size

__all__ = ["SHARE", "SPARE", "lacking", "size_limit"]

SHARE = "10%"
"""The part of its disk that the cache may take, where LOADKIT_CACHE_MAX says nothing else."""

SPARE = 0.02
"""The part of the disk that stays free, whatever the limit."""

_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}  # fmt: skip
_LIMIT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(%|[kmgt]i?b|)\s*", re.IGNORECASE)


def size_limit(text: str, folder: Path) -> int:
    """A limit such as "50GB", "20GiB" or "5%" of a folder's disk, in bytes; 0 if that disk can't be asked."""
    found = _LIMIT.fullmatch(text)
    if found is None:
        raise LoadkitError(
            f"the limit of the cache was given as {text!r} (LOADKIT_CACHE_MAX, or --max), which isn't a size: "
            "write one such as 50GB, 20GiB or 5%, or 0 for nothing"
        )
    number, unit = float(found[1]), found[2].lower()
    if unit != "%":
        return int(number * _UNITS[unit])
    try:
        return int(min(number, 100) / 100 * shutil.disk_usage(_existing(folder)).total)
    except OSError:
        return 0


def lacking(folder: Path, wanted: int, freed: int) -> str:
    """Why a disk can't take so many bytes once others are freed; "" where it can, its spare part aside."""
    try:
        disk = shutil.disk_usage(_existing(folder))
    except OSError as error:
        return f"the disk of {folder} can't be asked: {error}"
    if disk.free + freed < wanted + int(disk.total * SPARE):
        return f"it takes {size(wanted)}, and the disk has {size(disk.free)} left"
    return ""


def _existing(path: Path) -> Path:
    """The nearest folder above that is there."""
    return next((p for p in (path, *path.parents) if p.exists()), Path("/"))
