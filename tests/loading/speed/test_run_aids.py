"""A plugin that makes loads faster: told in the plan, entered around the load, told in the report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import loadkit
from loadkit import Plan, PluginManager, hookimpl
from loadkit.plugins import LoadingAid, Shortcut


class Counted(LoadingAid):
    """An aid that does nothing but count."""

    line = ""

    def __enter__(self) -> Counted:
        self.line = "read without a detour"
        return self


class Reads:
    @hookimpl
    def loadkit_shortcuts(self, plan: Plan) -> list[Shortcut]:
        return [Shortcut(plugin="reads", line="the weights are read without a detour")]

    @hookimpl
    def loadkit_shorten_loading(self, plan: Plan) -> LoadingAid | None:
        return Counted() if plan.quantization is None else None


@pytest.mark.parametrize(
    ("profile", "told"), [("inference", ("read without a detour (reads)",)), ("inference-4bit", ())]
)
def test_an_aid_is_told_before_and_after(
    tiny: Callable[[str], Path], profile: str, told: tuple[str, ...]
) -> None:
    manager = PluginManager(environ={"LOADKIT_DISABLE": ""})
    manager.register(Reads(), "reads")
    loaded = loadkit.load(tiny("mistral"), profile, plugin_manager=manager)
    assert "the weights are read without a detour" in {s.line for s in loaded.plan.shortcuts}
    assert set(told) <= set(loaded.report.shortcuts)
    assert any("reads" in line for line in loaded.report.shortcuts) == bool(told)
