"""The libraries underneath, imported before anything is fetched: what can't be is told then."""

from __future__ import annotations

from collections.abc import Mapping

from loadkit.errors import PlanError
from loadkit.facts.machine.machine import Machine
from loadkit.facts.machine.unusable import BEFORE_PEFT, failed_import, hide, unusable
from loadkit.planning.unusable_packages import PEFT, check_packages, needed_packages
from loadkit.schema.plans import Plan

__all__ = ["hide_what_peft_fails_with", "import_libraries"]


def import_libraries(plan: Plan, machine: Machine) -> None:
    """Import what the plan needs, so that the report doesn't charge it to loading.

    Raises:
        PlanError: what quantizes, or PEFT, is installed and can't be imported; nothing was loaded.
    """
    for name, fault in unusable(name for name in BEFORE_PEFT if name in machine.packages).items():
        hide(name, fault)  # transformers, accelerate and PEFT look for it while they are imported
    import torch  # noqa: F401
    import transformers.modeling_utils  # noqa: F401

    needed = needed_packages(plan, machine.packages)
    if PEFT in needed:
        hide_what_peft_fails_with(machine.packages)
    faults = {name: fault for name in needed if (fault := failed_import(name))}
    problems = list(check_packages(plan, machine.packages, faults))
    if problems:
        raise PlanError(plan.checkpoint.source, problems)


def hide_what_peft_fails_with(installed: Mapping[str, str]) -> None:
    """Let PEFT go without packages that can't be imported, as it does where they aren't installed."""
    for name in BEFORE_PEFT:
        if name in installed:
            failed_import(name)
