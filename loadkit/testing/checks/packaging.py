"""LK1: the plugin arrives by itself, and costs nothing until it is used."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import partial

from loadkit.testing.kit import NotApplicable, Unmet, check
from loadkit.testing.processes import same_modules
from loadkit.testing.scenarios import Scenario
from loadkit.testing.subjects import Subject

__all__ = ["HEAVY"]

HEAVY = ("torch", "transformers", "bitsandbytes", "peft", "accelerate")
"""Libraries that take seconds to import: only load-time hooks may, in their bodies."""

BY_HAND = "it was registered by hand, not announced by a distribution"

rule = partial(check, "packaging")


@rule("LK101", "The entry point can be imported.", "correct the entry point, or the module that it names")
def entry_point(subject: Subject, scenario: Scenario) -> None:
    if subject.entry is None:
        raise NotApplicable(BY_HAND)
    if subject.fault:
        raise Unmet(f"importing {subject.entry.value} {subject.fault}")


@rule("LK102", "Importing it imports no heavy library.", "import them in the bodies of the hooks that load")
def light_import(subject: Subject, scenario: Scenario) -> None:
    module = _module(subject)
    code = (
        f"import importlib, sys; importlib.import_module({module!r}); "
        f"print(*(m for m in {HEAVY!r} if m in sys.modules))"
    )
    _imports_nothing_heavy(f"importing {module}", code)


@rule("LK103", "Its distribution requires loadkit.", 'add "loadkit" to the dependencies in pyproject.toml')
def requires_loadkit(subject: Subject, scenario: Scenario) -> None:
    distribution = subject.entry.dist if subject.entry is not None else None
    if distribution is None:
        raise NotApplicable(BY_HAND)
    if distribution.name == "loadkit":
        raise NotApplicable("it comes with loadkit itself")
    required = {
        re.split(r"[\s;<>=!~\[(]", line, maxsplit=1)[0].lower() for line in distribution.requires or ()
    }
    if "loadkit" not in required:
        required_text = ", ".join(sorted(required)) or "nothing"
        raise Unmet(f"{distribution.name} requires {required_text}, and not loadkit")


@rule(
    "LK104",
    "Planning with it imports no heavy library.",
    "decide from the facts in context; what needs torch belongs into the hooks that load",
)
def light_planning(subject: Subject, scenario: Scenario) -> None:
    _module(subject)
    if subject.entry is None:
        raise NotApplicable("it was registered by hand: another process wouldn't find it")
    code = (
        "import sys; from loadkit.testing.scenarios import PLAIN, plan_of; from loadkit import PluginManager; "
        "manager = PluginManager(environ={}); before = set(sys.modules); plan_of(PLAIN, manager); "
        f"print(*(m for m in {HEAVY!r} if m in sys.modules and m not in before))"
    )
    _imports_nothing_heavy("planning", code)


def _imports_nothing_heavy(doing: str, code: str) -> None:
    """Run code that prints the heavy libraries it imports, in a process of its own."""
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=same_modules()
    )
    if found.returncode:
        raise Unmet(f"{doing} in a process of its own fails: {_last_line(found.stderr)}")
    if heavy := _last_line(found.stdout):
        raise Unmet(f"{doing} imports {', '.join(heavy.split())}")


def _last_line(printed: str) -> str:
    """What was printed last; a plugin may have printed before."""
    return (printed.splitlines() or ["it ended without a word"])[-1].strip()


def _module(subject: Subject) -> str:
    if not subject.module:
        raise NotApplicable("it is an object, not a module")
    if subject.fault:
        raise NotApplicable("it can't be imported (LK101)")
    return subject.module
