"""What is known of each plugin, whether it works or not, and what follows of all of them together."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Literal

import msgspec

from loadkit.hooks.discovery import OWN, names_of
from loadkit.text.suggest import did_you_mean

__all__ = ["PluginInfo", "in_conflict", "strangers"]


class PluginInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One plugin, whether it works or not.

    Parameters:
        name: the entry point's name, or what it was registered as.
        state: "active", "blocked" (by the environment) or "broken".
        distribution: the distribution that brings it; "" where it was registered by hand.
        version: that distribution's version.
        hooks: the hooks it implements, sorted.
        reason: why it is blocked or broken; "" where it is active.
    """

    name: str
    state: Literal["active", "blocked", "broken"]
    distribution: str = ""
    version: str = ""
    hooks: tuple[str, ...] = ()
    reason: str = ""


def in_conflict(infos: Collection[PluginInfo], stated: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Those that say they can't be beside one that is active, to the words.

    Parameters:
        infos: every plugin.
        stated: plugin to those it can't be beside, plugins or distributions, and to the reasons.
    """
    here: dict[str, str] = {}
    for info in infos:
        if info.state == "active":
            home = info.distribution if info.distribution != OWN else ""
            here |= dict.fromkeys(names_of(info.name, home), info.name)
    return {
        name: f"it can't be beside {other!r} ({reason}): leave one out, LOADKIT_DISABLE={here[other]} or LOADKIT_DISABLE={name}"
        for name, conflicts in stated.items()
        for other, reason in sorted(conflicts.items(), reverse=True)
        if here.get(other, name) != name
    }


def strangers(infos: Collection[PluginInfo], names: Collection[str]) -> Iterator[str]:
    """Words for every name that is neither a plugin's nor a distribution's."""
    known = {name for info in infos for name in names_of(info.name, info.distribution)}
    for name in sorted(set(names) - known):
        nearest = did_you_mean(name, sorted(known))
        yield f"{name!r}, and no installed plugin or distribution is called so{nearest}"
