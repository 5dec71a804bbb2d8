"""What an older transformers can't run is refused in the plan."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

import loadkit
from loadkit.facts.machine.machine import this_machine

CODE = "packed-experts-need-transformers"


@pytest.mark.parametrize(
    ("version", "refused"), [("5.5.3", True), ("5.6.2", True), ("5.7.0", False), ("6.0", False)]
)
@pytest.mark.parametrize("kind", ["mixtral", "mistral"])
def test_packed_experts_need_a_transformers_that_runs_them(
    tiny: Any, kind: str, version: str, refused: bool
) -> None:
    machine = this_machine()
    machine = msgspec.structs.replace(machine, packages={**machine.packages, "transformers": version})
    try:
        loadkit.plan(tiny(kind), "inference-4bit", machine=machine)
        codes = set()
    except loadkit.PlanError as error:
        codes = {problem.code for problem in error.problems}
    assert (CODE in codes) is (refused and kind == "mixtral")
