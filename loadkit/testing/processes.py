"""Processes of their own in which the kit tries a plugin."""

from __future__ import annotations

import os
import sys

__all__ = ["same_modules"]


def same_modules() -> dict[str, str]:
    """The environment of a process that finds the same modules and distributions as this one."""
    path = os.pathsep.join(part or os.getcwd() for part in sys.path)
    return {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
