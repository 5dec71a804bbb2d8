"""Packages that are installed and can't be imported: who needs one learns why, the others do without.

A system library that is missing, or a build for another platform, shows when a package is imported, which
planning never does. So planning knows what can be seen from outside, and what an earlier import here came to.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Iterable

__all__ = ["BEFORE_PEFT", "OPTIONAL", "failed_import", "hide", "unusable"]

OPTIONAL = ("bitsandbytes", "compressed-tensors", "peft", "torchao")
"""Packages that only some loads import, under their distributions' names; a module's has _ for each -."""

BEFORE_PEFT = ("bitsandbytes",)
"""What PEFT imports where it is installed, needed or not, and fails with (0.18 to 0.21)."""

_failed: dict[str, str] = {}
"""Package to how its import went wrong: it isn't tried again, as halves of it are left in the process."""


def unusable(packages: Iterable[str]) -> dict[str, str]:
    """Those that can't be imported, with the reason, as far as that shows without importing any.

    Parameters:
        packages: the distributions' names.
    """
    return {name: fault for name in packages if (fault := _failed.get(name) or _unseen(name))}


def failed_import(package: str) -> str:
    """Import a package; one that can't be is hidden from the libraries that would try it for themselves.

    Parameters:
        package: the distribution's name.

    Returns:
        "" where it is imported, else why it can't be.
    """
    fault = _failed.get(package) or _unseen(package)
    if not fault:
        try:
            importlib.import_module(_module(package))
        except (Exception, SystemExit) as error:  # whatever its own code raises
            said = re.sub(r"\s+", " ", str(error)).strip()
            fault = f"{type(error).__name__}: {said[:300]}".rstrip(": ")
    if fault:
        hide(package, fault)
    return fault


def hide(package: str, fault: str) -> None:
    """Let a package be one that isn't there, until the process ends.

    `importlib.util.find_spec` answers None for it from then on, which accelerate, PEFT and transformers ask
    before they import what they can do without.
    """
    module = _module(package)
    _failed[package] = fault
    for name in [name for name in sys.modules if name == module or name.startswith(f"{module}.")]:
        del sys.modules[name]
    sys.modules[module] = None  # type: ignore[assignment]


def _module(package: str) -> str:
    return package.replace("-", "_")


def _unseen(package: str) -> str:
    """Why no import can find it; "" where one may."""
    module = _module(package)
    if sys.modules.get(module) is not None:
        return ""
    try:
        found = importlib.util.find_spec(module)
    except Exception as error:  # an import hook of somebody's, such as one that forbids it
        return f"{type(error).__name__}: {error}"
    return "" if found is not None else f"there is no module of the name {module}"
