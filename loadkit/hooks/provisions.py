"""What plugins declare once, when they are registered: options, profiles and architectures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec
import pluggy

from loadkit.hooks import hookspecs
from loadkit.request.options import CORE_OPTIONS, RESERVED, Option, option_fault
from loadkit.request.profiles import Profile
from loadkit.schema.values import Architecture

__all__ = ["Provided", "Provision", "provided_by", "provision", "refuse_taken"]

T = TypeVar("T")


class Provision(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """What plugins provide of one kind.

    Parameters:
        found: name to (plugin, item).
        conflicts: a name that several plugins provide, to those; it breaks only who asks for that name.
    """

    found: Mapping[str, tuple[str, T]]
    conflicts: Mapping[str, tuple[str, ...]]


class Provided(NamedTuple):
    """What one plugin declares."""

    options: tuple[Option, ...]
    profiles: tuple[Profile, ...]
    architectures: tuple[Architecture, ...]


def provided_by(
    name: str, manager: pluggy.PluginManager, call: Callable[[pluggy.HookImpl, Mapping[str, object]], Any]
) -> Provided:
    """Ask one registered plugin what it declares; a TypeError for a declaration of the wrong type.

    Parameters:
        call: calls one hook of one plugin.
    """

    def given(hook: Callable[[], Sequence[T]], kind: type[T]) -> tuple[T, ...]:
        impls = [i for i in getattr(manager.hook, hook.__name__).get_hookimpls() if i.plugin_name == name]
        items = tuple(item for impl in impls for item in call(impl, {}) or ())
        for item in items:
            if not isinstance(item, kind):
                raise TypeError(f"{hook.__name__} gave {item!r}; it gives {kind.__name__} values")
        return items

    options = given(hookspecs.loadkit_options, Option)
    for option in options:
        if fault := option_fault(option):
            raise TypeError(f"loadkit_options gave {option!r}; {fault}")
    return Provided(
        options,
        given(hookspecs.loadkit_profiles, Profile),
        given(hookspecs.loadkit_architectures, Architecture),
    )


def provision(items: Iterable[tuple[str, str, T]]) -> Provision[T]:
    """Items of all plugins as (name, plugin, item), by name; a name that several provide is a conflict."""
    found: dict[str, tuple[str, T]] = {}
    conflicts: dict[str, tuple[str, ...]] = {}
    for name, plugin, item in items:
        if name in found:
            conflicts[name] = tuple(sorted({*conflicts.get(name, ()), found[name][0], plugin}))
        found[name] = (plugin, item)
    return Provision(found={n: f for n, f in found.items() if n not in conflicts}, conflicts=conflicts)


def refuse_taken(provided: Provided, own: Mapping[str, Provided]) -> None:
    """A TypeError where a plugin takes an option that the core or loadkit's own plugins have: no flag may
    change hands. A profile of one name breaks only who asks for it.

    Parameters:
        own: what loadkit's own plugins declare.
    """
    options = dict.fromkeys(RESERVED, "an argument of plan() and load() or a flag of the command line")
    owners = [("loadkit", CORE_OPTIONS), *((plugin, given.options) for plugin, given in own.items())]
    for plugin, declared in owners:
        options |= {
            n: f"an option of {plugin!r}" for option in declared for n in (option.name, *option.aliases)
        }
    for option in provided.options:
        for name in (option.name, *option.aliases):
            if name in options:
                raise TypeError(
                    f"it declares the option {name!r}, which is {options[name]}: choose another name"
                )
