"""Whether a plugin's hooks are hooks as there are, as far as that can be told when it is registered."""

from __future__ import annotations

from collections.abc import Sequence

import pluggy

from loadkit.hooks import hookspecs
from loadkit.text.suggest import did_you_mean

__all__ = ["WRAPPABLE", "fitting_hooks"]

WRAPPABLE = "loadkit_load_model"
"""The one hook that may be wrapped: a wrapper around a decision would be an opinion without a name."""

TOGETHER = (
    ("loadkit_announce_finish", "loadkit_finish_model", "what isn't in the plan isn't done"),
    ("loadkit_finish_model", "loadkit_announce_finish", "the plan would name what nobody does"),
)
"""Hooks that one plugin has both of: the first, what it is nothing without, and what would be otherwise."""


def fitting_hooks(plugin: object, callers: Sequence[pluggy.HookCaller]) -> tuple[str, ...]:
    """The names of a plugin's hooks, sorted; a TypeError where they don't fit.

    Parameters:
        callers: those that pluggy registered it with.
    """
    for caller in callers:
        if not caller.has_spec():
            known = [name for name in vars(hookspecs) if name.startswith("loadkit_")]
            raise TypeError(f"{caller.name} isn't a hook of loadkit{did_you_mean(caller.name, known)}")
        wraps = any(i.plugin is plugin and (i.wrapper or i.hookwrapper) for i in caller.get_hookimpls())
        if wraps and caller.name != WRAPPABLE:
            raise TypeError(f"{caller.name} can't be wrapped: answer it with a claim instead")
    if not callers:
        raise TypeError("it implements no hook: mark its functions with @loadkit.hookimpl")
    names = {caller.name for caller in callers}
    for missing, there, why in TOGETHER:
        if there in names and missing not in names:
            raise TypeError(f"it has {there} and not {missing}: {why}")
    return tuple(sorted(names))
