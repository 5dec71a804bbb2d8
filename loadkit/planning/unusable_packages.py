"""Packages that a plan needs and that are installed, but can't be imported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from loadkit.errors import Problem
from loadkit.facts.machine.unusable import OPTIONAL
from loadkit.schema.plans import Plan

__all__ = ["PEFT", "check_packages", "needed_packages"]

PEFT = "peft"


def needed_packages(plan: Plan, installed: Mapping[str, str]) -> dict[str, str]:
    """Installed packages that only some loads import, and that this one does, with the stage that decided so.

    A quantizer's package among them has the name of its method. What others need (gptq's, say), they say
    themselves; a distribution that is called as a method is may be somebody else's.
    """
    methods = [] if plan.quantization is None else [plan.quantization.method]
    found = {method: "quantization" for method in methods if method in installed and method in OPTIONAL}
    return found | ({PEFT: "adapter"} if plan.adapters and PEFT in installed else {})


def check_packages(plan: Plan, installed: Mapping[str, str], faults: Mapping[str, str]) -> Iterator[Problem]:
    """What a plan needs and can't have.

    Parameters:
        installed: packages and their versions.
        faults: those that can't be imported, with the reason.
    """
    for name, stage in needed_packages(plan, installed).items():
        if name in faults:
            decision = plan.why(stage)
            yield Problem(
                stage,
                "loadkit",
                "package-unusable",
                f"{decision.plugin} needs {name} ({decision.because}), and {name} {installed[name]} is installed but can't be "
                f"imported here: {faults[name]}",
                f"`python -c 'import {name.replace('-', '_')}'` shows the whole error: install a build of {name} for this machine, or "
                f"{'load without quantization (profile lora or inference)' if stage == 'quantization' else 'load without an adapter'}",
            )
