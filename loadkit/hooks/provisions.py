"""What plugins declare once, when they are registered: options, profiles and architectures."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec
import pluggy

from loadkit.facts.machine.named_machines import NamedAccelerator, accelerator_fault
from loadkit.hooks import hookspecs
from loadkit.request.options import CORE_OPTIONS, RESERVED, Option, option_fault
from loadkit.request.profiles import Profile
from loadkit.request.recipes.key_tables import Dialect, dialect_fault
from loadkit.schema.memory import Optimizer
from loadkit.schema.values import Architecture

__all__ = ["Provided", "Providing", "Provision", "provided_by", "provision", "refuse_taken"]

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
    optimizers: tuple[Optimizer, ...] = ()
    accelerators: tuple[NamedAccelerator, ...] = ()
    dialects: tuple[Dialect, ...] = ()

    @property
    def faults(self) -> Iterator[tuple[str, object, str]]:
        """What is wrong with a declaration, as (hook, declaration, fault)."""
        yield from (("options", each, option_fault(each)) for each in self.options)
        yield from (("optimizers", each, "" if each.names else "it has no name") for each in self.optimizers)
        yield from (("accelerators", each, accelerator_fault(each)) for each in self.accelerators)
        yield from (("recipe_dialects", each, dialect_fault(each)) for each in self.dialects)


class Providing:
    """What all plugins of a manager declare, gathered when somebody asks."""

    _provided: dict[str, Provided]

    @property
    def provided(self) -> Mapping[str, Provided]:
        """What each active plugin declares."""
        return self._provided

    @functools.cached_property
    def options(self) -> Provision[Option]:
        """Every declared option, by its name and its aliases; "loadkit" declares the core's own."""
        items = [("loadkit", option) for option in CORE_OPTIONS]
        items += [(plugin, option) for plugin, given in self._provided.items() for option in given.options]
        return provision(
            (name, plugin, option) for plugin, option in items for name in (option.name, *option.aliases)
        )

    @functools.cached_property
    def profiles(self) -> Provision[Profile]:
        """Every profile, by its name."""
        return self._by_name(lambda given: ((p.name, p) for p in given.profiles))

    @functools.cached_property
    def architectures(self) -> Provision[Architecture]:
        """Every registered architecture, by its model type."""
        return self._by_name(lambda given: ((a.model_type, a) for a in given.architectures))

    @functools.cached_property
    def optimizers(self) -> Provision[Optimizer]:
        """Every optimizer whose state is known, by each of its names."""
        return self._by_name(lambda given: ((name, o) for o in given.optimizers for name in o.names))

    @functools.cached_property
    def accelerators(self) -> Provision[NamedAccelerator]:
        """Every accelerator that plugins bring, by its short name."""
        return self._by_name(lambda given: ((a.short, a) for a in given.accelerators))

    @functools.cached_property
    def dialects(self) -> tuple[Dialect, ...]:
        """Every recipe dialect that plugins bring."""
        return tuple(each for given in self._provided.values() for each in given.dialects)

    def _by_name(self, named: Callable[[Provided], Iterable[tuple[str, T]]]) -> Provision[T]:
        return provision(
            (name, plugin, item) for plugin, given in self._provided.items() for name, item in named(given)
        )

    def _gather_again(self) -> None:
        """Forget what was gathered: thousands of plans in a process gather it once."""
        for name in Provided._fields:
            self.__dict__.pop(name, None)


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

    found = Provided(
        given(hookspecs.loadkit_options, Option),
        given(hookspecs.loadkit_profiles, Profile),
        given(hookspecs.loadkit_architectures, Architecture),
        given(hookspecs.loadkit_optimizers, Optimizer),
        given(hookspecs.loadkit_accelerators, NamedAccelerator),
        given(hookspecs.loadkit_recipe_dialects, Dialect),
    )
    for hook, item, fault in found.faults:
        if fault:
            raise TypeError(f"loadkit_{hook} gave {item!r}; {fault}")
    return found


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
    """A TypeError where a plugin takes an option or optimizer that the core or loadkit's own plugins have: no
    flag may change hands. A profile of one name breaks only who asks for it.

    Parameters:
        own: what loadkit's own plugins declare.
    """
    options = dict.fromkeys(RESERVED, "an argument of plan() and load() or a flag of the command line")
    owners = [("loadkit", CORE_OPTIONS), *((plugin, given.options) for plugin, given in own.items())]
    for plugin, declared in owners:
        options |= {
            n: f"an option of {plugin!r}" for option in declared for n in (option.name, *option.aliases)
        }
    theirs = {
        name: plugin for plugin, given in own.items() for each in given.optimizers for name in each.names
    }
    for taken in (name for each in provided.optimizers for name in each.names if name in theirs):
        raise TypeError(
            f"it brings the optimizer {taken!r}, which {theirs[taken]!r} has: choose another name"
        )
    for option in provided.options:
        for name in (option.name, *option.aliases):
            if name in options:
                raise TypeError(
                    f"it declares the option {name!r}, which is {options[name]}: choose another name"
                )
