"""Hooks and parameters under the names that they had: an old plugin works, and its author is warned."""

from __future__ import annotations

import warnings
from typing import Any

import pluggy

from loadkit.hooks import hookspecs

__all__ = ["OldNamesManager", "PluginWarning"]


class PluginWarning(UserWarning):
    """What is odd about plugins and stops nothing: a name that no plugin has, a hook under its old name."""


class OldNamesManager(pluggy.PluginManager):
    """pluggy's manager, which takes hooks and parameters under their old names too."""

    registering = ""

    def register(self, plugin: Any, name: str | None = None) -> str | None:
        """As pluggy's, knowing the name while it looks at the plugin's functions."""
        self.registering = name or ""
        return super().register(plugin, name)

    def parse_hookimpl_opts(self, plugin: Any, name: str) -> Any:
        """As pluggy's; an old name counts as the present one."""
        opts = super().parse_hookimpl_opts(plugin, name)
        new = hookspecs.RENAMED.get(name)
        if opts is not None and new is not None and opts.get("specname") is None:
            opts["specname"] = new
            warnings.warn(
                f"the plugin {self.registering!r} has {name}, which is called {new} now: the old name works until "
                "the next major version",
                PluginWarning,
                stacklevel=2,
            )
        return opts

    def _verify_hook(self, hook: Any, hookimpl: Any) -> None:
        """As pluggy's (1.7), with old parameters renamed: implementations are called by position."""
        renamed = hookspecs.RENAMED_PARAMETERS.get(hook.name, {})
        for old in (name for name in hookimpl.argnames if name in renamed):
            warnings.warn(
                f"the plugin {hookimpl.plugin_name!r} has the parameter {old} in {hook.name}, which is called {renamed[old]} now: the "
                "old name works until the next major version",
                PluginWarning,
                stacklevel=2,
            )
        hookimpl.argnames = tuple(renamed.get(name, name) for name in hookimpl.argnames)
        super()._verify_hook(hook, hookimpl)
