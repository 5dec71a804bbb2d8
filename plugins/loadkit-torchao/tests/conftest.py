"""Tiny real checkpoints, made once a session, and a manager with the plugin, without its entry point."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import loadkit


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A maker of tiny checkpoints: `tiny("mistral")`."""
    from loadkit.testing.checkpoints import make_checkpoint

    made: dict[str, Path] = {}

    def make(arch: str = "mistral") -> Path:
        if arch not in made:
            made[arch] = make_checkpoint(tmp_path_factory.mktemp(arch) / arch, arch)
        return made[arch]

    return make


@pytest.fixture
def manager() -> loadkit.PluginManager:
    """Every installed plugin, and this one."""
    from loadkit_torchao import plugin

    made = loadkit.PluginManager(environ={})
    if "torchao" not in {about.name for about in made.plugins}:
        made.register(plugin, "torchao")
    return made
