"""The plugins that installed distributions announce, and what can be said of each before it is imported."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from importlib import metadata
from typing import TYPE_CHECKING, NamedTuple

from loadkit.hooks import hookspecs
from loadkit.hooks.contained import raised

if TYPE_CHECKING:
    from packaging.requirements import Requirement

__all__ = ["OWN", "Announced", "announced", "entries_of", "module_of", "names_of", "unmet"]

OWN = "loadkit"
"""The distribution whose plugins are loadkit's own."""

OWN_PLUGINS = "loadkit_plugins"
"""The package that they are in."""


class Announced(NamedTuple):
    """One plugin as its distribution announces it.

    name: what it is called here: the entry point's name, with the distribution where that is taken.
    entry: the entry point.
    distribution, version: of the distribution; "" where there is none.
    fault: why it can't take part, whatever its code is; "" where nothing is known.
    """

    name: str
    entry: metadata.EntryPoint
    distribution: str
    version: str
    fault: str = ""


class _Home(NamedTuple):
    """What is needed of a distribution, read once: each look at a name parses all of its metadata."""

    name: str
    version: str
    requires: tuple[str, ...]
    fault: str = ""


def announced() -> list[Announced]:
    """Every plugin that a distribution announces: loadkit's own first, then the others by name.

    A name that loadkit's own plugin has is that one's. Where others share a name, none of them gets it.
    """
    unread: list[Announced] = []
    found = _found(unread)
    homes = {dist: _home(dist) for dist in {e.dist for e in found}}
    claimants: dict[str, dict[str, metadata.EntryPoint]] = {}
    for entry in sorted(found, key=lambda e: (e.name, homes[e.dist].name, e.value)):
        distribution = homes[entry.dist].name
        if distribution == OWN and module_of(entry).partition(".")[0] != OWN_PLUGINS:
            distribution = f"{_from_folder(entry.dist)} (which calls itself {OWN})"
        # One distribution that is on the path twice announces the same plugin twice.
        claimants.setdefault(entry.name, {}).setdefault(distribution, entry)
    own = (entries[OWN] for entries in claimants.values() if OWN in entries)
    version = next((homes[entry.dist].version for entry in own), "")
    listed = [*unread]
    for name, entries in claimants.items():
        for distribution, entry in entries.items():
            home = homes[entry.dist]
            taken = len(entries) > 1 and distribution != OWN
            fault = home.fault or (_shared(name, tuple(entries)) if taken else unmet(home.requires, version))
            if not module_of(entry):
                fault = fault or f"its entry point is {entry.value!r}, which names no module"
            unique = f"{name} ({distribution})" if taken else name
            listed.append(Announced(unique, entry, distribution, home.version, fault))
    return sorted(listed, key=lambda a: (a.distribution != OWN, a.name))


def unmet(requires: Iterable[str], version: str) -> str:
    """Why this loadkit isn't one that a distribution asks for; "" where it is, or that can't be told."""
    lines = [line for line in requires if re.match(r"loadkit\s*($|[;<>=!~(\[])", line, re.IGNORECASE)]
    if not version or not any(re.search("[<>=!~]", line.partition(";")[0]) for line in lines):
        return ""
    from packaging.requirements import InvalidRequirement, Requirement

    for line in lines:
        try:
            asked = Requirement(line)
        except InvalidRequirement:
            continue
        if _applies(asked) and not asked.specifier.contains(version, prereleases=True):
            return (
                f"its distribution requires loadkit{asked.specifier}, and this is loadkit {version}: update loadkit, or install "
                "another version of the plugin"
            )
    return ""


def _applies(asked: Requirement) -> bool:
    try:
        return asked.marker is None or asked.marker.evaluate({"extra": ""})
    except Exception:  # a marker that means nothing here
        return False


def module_of(entry: metadata.EntryPoint) -> str:
    """The module that an entry point names; "" where it names none."""
    try:
        return entry.module
    except AttributeError:  # importlib.metadata's, of a value that it can't read (Python 3.11)
        return ""


def names_of(name: str, distribution: str) -> frozenset[str]:
    """What a plugin may be called in LOADKIT_DISABLE and LOADKIT_PLUGINS: by its name or its distribution."""
    plain = {name, distribution, name.partition(" (")[0]} if " (" in name else {name, distribution}
    return frozenset({*plain, *(re.sub(r"[-_.]+", "-", each).lower() for each in plain)} - {""})


def entries_of(group: str) -> list[metadata.EntryPoint]:
    """Every entry point of a group; those of a distribution whose file can't be read are left out."""
    return _found([], group)


def _found(unread: list[Announced], group: str = hookspecs.PROJECT) -> list[metadata.EntryPoint]:
    """Every entry point of the group; that one distribution's file can't be read is that one's fault alone.

    Parameters:
        unread: takes those of which nobody knows what they announce.
    """
    try:
        return list(metadata.entry_points(group=group))
    except Exception:
        return list(_one_by_one(unread, group))


def _one_by_one(unread: list[Announced], group: str) -> Iterator[metadata.EntryPoint]:
    """As `metadata.entry_points`, a distribution at a time."""
    seen: set[str] = set()
    for dist in metadata.distributions():
        home = _home(dist)
        if home.name in seen:
            continue
        seen.add(home.name)
        try:
            yield from dist.entry_points.select(group=group)
        except Exception as error:
            fault = f"its entry_points.txt can't be read: {raised(error)}"
            if isinstance(error, UnicodeError) or group in (dist.read_text("entry_points.txt") or ""):
                entry = metadata.EntryPoint(home.name, "", group)
                unread.append(Announced(home.name, entry, home.name, home.version, fault))


def _home(dist: metadata.Distribution | None) -> _Home:
    if dist is None:
        return _Home("", "", ())
    try:
        name = dist.metadata["Name"] or _from_folder(dist)
        return _Home(name, dist.version or "", () if name == OWN else tuple(dist.requires or ()))
    except Exception as error:
        return _Home(_from_folder(dist), "", (), f"its metadata can't be read: {raised(error)}")


def _from_folder(dist: metadata.Distribution | None) -> str:
    """What a distribution is called, where its metadata doesn't say."""
    folder = os.path.basename(str(getattr(dist, "_path", "")))
    return folder.partition("-")[0].replace("_", "-")


def _shared(name: str, distributions: tuple[str, ...]) -> str:
    if OWN in distributions:
        return f"{name!r} is the name of a plugin of loadkit's own: have this one renamed in its distribution"
    return f"{' and '.join(distributions)} both call a plugin {name!r}; uninstall one, or have one renamed"
