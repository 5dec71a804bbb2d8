"""What plugins declare is gathered once, and again when they change."""

from __future__ import annotations

import types
from collections.abc import Callable

import loadkit
from loadkit.hooks.hookspecs import loadkit_choose_dtype


def plugin(**functions: Callable[..., object]) -> types.ModuleType:
    made = types.ModuleType("made")
    for name, function in functions.items():
        function.__name__ = name
        setattr(made, name, loadkit.hookimpl(function))
    return made


def test_declarations_are_gathered_once() -> None:
    manager = loadkit.PluginManager(entry_points=False)
    assert manager.options is manager.options
    assert manager.profiles is manager.profiles
    assert manager.architectures is manager.architectures


def test_a_plugin_that_comes_or_goes_is_seen() -> None:
    manager = loadkit.PluginManager(entry_points=False)
    before = set(manager.options.found)
    assert manager.profiles.found == {}
    option = loadkit.Option(name="patience", type="int", help="how long", stage="dtype")
    profile = loadkit.Profile(name="patient", description="slowly")
    manager.register(
        plugin(loadkit_options=lambda: [option], loadkit_profiles=lambda: [profile]), name="patient"
    )
    assert set(manager.options.found) - before == {"patience"}
    assert set(manager.profiles.found) == {"patient"}
    manager.unregister("patient")
    assert set(manager.options.found) == before
    assert manager.profiles.found == {}


def test_hooks_of_a_plugin_that_comes_or_goes_are_asked() -> None:
    manager = loadkit.PluginManager(entry_points=False)
    asked = {"context": None, "architecture": None}
    assert manager.poll(loadkit_choose_dtype, **asked).claims == []
    claim = loadkit.Claim(value="float32", because="I say so")
    manager.register(plugin(loadkit_choose_dtype=lambda context, architecture: claim), name="b")
    manager.register(plugin(loadkit_choose_dtype=lambda context, architecture: claim), name="a")
    assert [c.plugin for c in manager.poll(loadkit_choose_dtype, **asked).claims] == ["a", "b"]
    manager.unregister("a")
    assert [c.plugin for c in manager.poll(loadkit_choose_dtype, **asked).claims] == ["b"]
