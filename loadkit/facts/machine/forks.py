"""Whether this process was forked off one that had torch already, whose threads it doesn't have."""

from __future__ import annotations

import os
import sys

__all__ = ["forked_with_torch"]

_forked = False


def forked_with_torch() -> bool:
    """Whether torch may wait here for threads that only a parent has: OpenMP's don't survive a fork.

    Known from when loadkit is imported on; a child that imports it after the fork, with torch there, counts.
    """
    return _forked


def _in_child() -> None:
    global _forked
    _forked = _forked or "torch" in sys.modules


def _born_by_fork() -> bool:
    """Whether this process is one that was forked and has run no other program since: Linux tells."""
    try:
        with open("/proc/self/stat", encoding="ascii", errors="replace") as file:
            flags = int(file.read().rpartition(")")[2].split()[6])
    except (OSError, ValueError, IndexError):
        return False
    return bool(flags & 0x40)  # PF_FORKNOEXEC


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
    if "torch" in sys.modules and _born_by_fork():
        _forked = True
