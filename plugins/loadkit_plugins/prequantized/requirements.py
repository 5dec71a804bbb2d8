"""Whether packages are installed, in versions that serve."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping

from loadkit import Machine

__all__ = ["installable", "lacking"]

Version = tuple[int, ...]

OPERATORS: Mapping[str, Callable[[Version, Version], bool]] = {">=": operator.ge, "<": operator.lt}


def lacking(needs: Iterable[str], machine: Machine) -> list[str]:
    """Those of the requirements ("kernels>=0.18.2,<0.19.0", "a|b") that the machine's packages don't meet."""
    return [need for need in needs if not any(_met(one, machine) for one in need.split("|"))]


def installable(needs: Iterable[str]) -> str:
    """What pip takes: of packages that serve alike, the first."""
    return " ".join(f"'{one}'" if set(one) & set("<>") else one for one in (n.split("|")[0] for n in needs))


def _met(requirement: str, machine: Machine) -> bool:
    name, *_ = re.split(r"[<>=]", requirement, maxsplit=1)
    found = machine.version(name)
    if found is None:
        return False
    bounds = re.findall(r"(>=|<)([\d.]+)", requirement)
    return not found or all(OPERATORS[sign](found, _numbers(bound)) for sign, bound in bounds)


def _numbers(text: str) -> Version:
    return tuple(int(part) for part in text.split("."))
