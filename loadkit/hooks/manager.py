"""The plugin manager: a typed facade over pluggy that isolates broken plugins and stamps every answer."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, ParamSpec, TypeVar

import msgspec
import pluggy

from loadkit.errors import LoadkitError, PluginError, Problem
from loadkit.hooks import hookspecs
from loadkit.hooks.calls import call, typed
from loadkit.hooks.contained import Left, contained, raised, shown
from loadkit.hooks.discovery import OWN, Announced, announced, names_of
from loadkit.hooks.facts_stated import conflicts_of, refuse_newer
from loadkit.hooks.fitting import fitting_hooks
from loadkit.hooks.old_names import OldNamesManager, PluginWarning
from loadkit.hooks.plugin_info import PluginInfo, in_conflict, strangers
from loadkit.hooks.provisions import Provided, Providing, Provision, provided_by, refuse_taken
from loadkit.hooks.wrappers import around
from loadkit.schema.claims import Claim, StampedClaim

__all__ = ["PluginInfo", "PluginManager", "PluginWarning", "Polled", "Provision", "default_manager"]

P = ParamSpec("P")
T = TypeVar("T")


class Polled(NamedTuple):
    """The answers to a decision hook: claims, and explanations for when nobody claims."""

    claims: list[StampedClaim]
    explanations: list[Problem]


class PluginManager(Providing):
    """A set of plugins. Managers are independent: a test or an application can have its own.

    Parameters:
        entry_points: whether to load the plugins that distributions announce in the group "loadkit".
        environ: where LOADKIT_DISABLE, LOADKIT_PLUGINS and LOADKIT_STRICT are read; os.environ by default.

    Raises:
        PluginError: LOADKIT_STRICT=1 and a plugin is broken.
    """

    def __init__(self, *, entry_points: bool = True, environ: Mapping[str, str] | None = None) -> None:
        env = os.environ if environ is None else environ
        self._disabled = _names(env.get("LOADKIT_DISABLE", ""))
        self._allowed = _names(env.get("LOADKIT_PLUGINS", ""))
        self._strict = env.get("LOADKIT_STRICT", "") not in ("", "0")
        self._pluggy = OldNamesManager(hookspecs.PROJECT)
        self._pluggy.add_hookspecs(hookspecs)
        self._infos: dict[str, PluginInfo] = {}
        self._provided: dict[str, Provided] = {}
        self._conflicts: dict[str, Mapping[str, str]] = {}
        self._sorted: dict[str, tuple[pluggy.HookImpl, ...]] = {}
        if entry_points:
            self._load_entry_points()
            self._warn_of_strangers()

    # --- Registering

    def register(self, plugin: object, name: str) -> None:
        """Add a plugin by hand.

        Parameters:
            plugin: a module or object with functions marked `@loadkit.hookimpl`.
            name: what it is called in plans and messages.

        Raises:
            PluginError: the name is taken, or the plugin doesn't fit the hooks: nothing of it stays then.
        """
        if name in self._infos:
            raise PluginError(
                name, "a plugin of that name is registered already; unregister it or choose another name"
            )
        try:
            hooks = self._register(plugin, name)
        except Exception as error:
            raise PluginError(name, f"it doesn't fit: {error}") from error
        self._infos[name] = PluginInfo(name=name, state="active", hooks=hooks)
        for between in in_conflict(self._infos.values(), self._conflicts).values():
            self.unregister(name)
            raise PluginError(name, between)

    def unregister(self, name: str) -> None:
        """Remove a plugin; unknown names are ignored."""
        if self._pluggy.get_plugin(name) is not None:
            self._pluggy.unregister(name=name)
        self._infos.pop(name, None)
        self._forget(name)

    @property
    def plugins(self) -> tuple[PluginInfo, ...]:
        """Every plugin found, sorted by name: active, blocked and broken ones."""
        return tuple(self._infos[name] for name in sorted(self._infos))

    def _load_entry_points(self) -> None:
        for found in self._in_order(announced()):
            about = PluginInfo(
                name=found.name, state="active", distribution=found.distribution, version=found.version
            )
            self._infos[found.name] = self._try(found, about)
        for name, reason in in_conflict(self._infos.values(), self._conflicts).items():
            self._pluggy.unregister(name=name)
            self._forget(name)
            self._infos[name] = self._broken(msgspec.structs.replace(self._infos[name], hooks=()), reason)

    def _in_order(self, found: Iterable[Announced]) -> Iterable[Announced]:
        """The order to register in, which changes nothing: loadkit's own first, so that names stay theirs."""
        return found

    def _warn_of_strangers(self) -> None:
        """A misspelt name in the environment would switch off nothing, or everything."""
        for variable, names in (("LOADKIT_DISABLE", self._disabled), ("LOADKIT_PLUGINS", self._allowed)):
            for said in strangers(self._infos.values(), names):
                warnings.warn(f"{variable} names {said}", PluginWarning, stacklevel=3)

    def _try(self, found: Announced, about: PluginInfo) -> PluginInfo:
        """Import and register one plugin, or note why not."""
        names = names_of(found.name, found.distribution)
        if names & self._disabled:
            return msgspec.structs.replace(about, state="blocked", reason="LOADKIT_DISABLE names it")
        if self._allowed and not names & self._allowed:
            return msgspec.structs.replace(about, state="blocked", reason="LOADKIT_PLUGINS doesn't name it")
        if found.fault:
            return self._broken(about, found.fault)
        try:
            with contained():
                plugin = found.entry.load()
            hooks = self._register(plugin, about.name, own=found.distribution == OWN)
        except Left as error:
            return self._broken(about, str(error), error)
        except Exception as error:
            return self._broken(about, raised(error), error)
        return msgspec.structs.replace(about, hooks=hooks)

    def _register(self, plugin: object, name: str, *, own: bool = False) -> tuple[str, ...]:
        """Take a plugin in, whole or not at all. Its code runs even where its attributes are only listed."""
        try:
            with contained():
                refuse_newer(plugin)
                if other := self._pluggy.get_name(plugin):
                    raise TypeError(f"it is what plugin {other!r} is already: one name is enough")
                self._pluggy.register(plugin, name=name)
                hooks = fitting_hooks(plugin, self._pluggy.get_hookcallers(plugin) or [])
                provided = provided_by(name, self._pluggy, self._call)
                if not own:
                    refuse_taken(provided, {n: p for n, p in self._provided.items() if n in self._own})
                    self._conflicts[name] = dict(conflicts_of(plugin))
            self._provided[name] = provided
        except BaseException:
            # pluggy leaves a plugin half registered when its check fails (pluggy 1.7): roll it back whole.
            if self._pluggy.get_plugin(name) is not None:
                self._pluggy.unregister(name=name)
            self._forget(name)
            raise
        self._changed()
        return hooks

    def _forget(self, name: str) -> None:
        """Forget what a plugin declared."""
        self._provided.pop(name, None)
        self._conflicts.pop(name, None)
        self._changed()

    def _changed(self) -> None:
        """Forget what was gathered from the plugins."""
        self._sorted.clear()
        self._gather_again()

    def _broken(self, about: PluginInfo, reason: str, error: Exception | None = None) -> PluginInfo:
        if self._strict:
            raise PluginError(about.name, f"{reason} (LOADKIT_STRICT is set)") from error
        return msgspec.structs.replace(about, state="broken", reason=reason)

    @property
    def _own(self) -> frozenset[str]:
        return frozenset(about.name for about in self._infos.values() if about.distribution == OWN)

    # --- Asking

    def _call(
        self, impl: pluggy.HookImpl, kwargs: Mapping[str, object], passing: type[Exception] = PluginError
    ) -> Any:
        """Call one hook of one plugin: every call but those with a wrapper around goes through here."""
        return call(impl, kwargs, passing)

    def poll(self, hook: Callable[P, object], /, *args: P.args, **kwargs: P.kwargs) -> Polled:
        """Ask every plugin a decision hook, sorted by plugin name; each claim is stamped with its plugin.

        Raises:
            PluginError: a plugin raised, or answered something that is neither a claim nor a problem.
        """
        claims: list[StampedClaim] = []
        explanations: list[Problem] = []
        for plugin, answer in self.answers(hook, *args, **kwargs):
            for given in answer if isinstance(answer, Sequence) else [answer]:
                if isinstance(given, Claim):
                    claims.append(StampedClaim(plugin, given))
                elif isinstance(given, Problem):
                    explanations.append(given)
                else:
                    fault = f"it answered {shown(answer)}; a decision hook returns a Claim, several, or None"
                    raise PluginError(plugin, fault, hook=hook.__name__)
        return Polled(claims, explanations)

    def answers(self, hook: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Iterator[tuple[str, T]]:
        """Call a hook of every plugin, sorted by name: (plugin, answer) for answers other than None.

        Raises:
            PluginError: a plugin raised; its exception is the cause.
        """
        name = hook.__name__
        if name not in self._sorted:
            found = getattr(self._pluggy.hook, name).get_hookimpls()
            self._sorted[name] = tuple(sorted(found, key=lambda i: i.plugin_name))
        for impl in self._sorted[name]:
            answer = self._call(impl, kwargs)
            if answer is not None:
                yield impl.plugin_name, answer

    def collect(self, hook: Callable[P, Any], kind: type[T], /, *args: P.args, **kwargs: P.kwargs) -> list[T]:
        """Call a hook of every plugin that returns several values of one kind; all of them.

        Raises:
            PluginError: a plugin raised, or answered something else.
        """
        return [item for _, item in self.collect_named(hook, kind, *args, **kwargs)]

    def collect_named(
        self, hook: Callable[P, Any], kind: type[T], /, *args: P.args, **kwargs: P.kwargs
    ) -> list[tuple[str, T]]:
        """As `collect`, each value with the plugin that gave it.

        Raises:
            PluginError: a plugin raised, or answered something else.
        """
        found: list[tuple[str, T]] = []
        for plugin, answer in self.answers(hook, *args, **kwargs):
            given = list(answer) if isinstance(answer, list | tuple | set | frozenset) else [answer]
            if not all(isinstance(item, kind) for item in given):
                fault = (
                    f"it answered {shown(answer)}; this hook returns several {kind.__name__} values, or none"
                )
                raise PluginError(plugin, fault, hook=hook.__name__)
            found += [(plugin, item) for item in given]
        return found

    def first(self, hook: Callable[P, T | None], /, *args: P.args, **kwargs: P.kwargs) -> T | None:
        """The first result of an action hook that isn't None: plugins are asked by name, loadkit's own last.

        Raises:
            PluginError: a plugin raised what isn't a loadkit error, or answered something of another type.
        """
        result: T | None = self._first(hook.__name__, kwargs, lambda: None)
        return result

    def first_or(self, hook: Callable[..., Any], otherwise: Callable[[], T], /, **kwargs: Any) -> T:
        """As `first`, and where nobody answers what `otherwise` gives: wrappers get that too.

        Raises:
            PluginError: a plugin raised what isn't a loadkit error, or answered something of another type.
        """
        result: T = self._first(hook.__name__, kwargs, otherwise)
        return result

    def wrapped(self, hook: Callable[..., Any]) -> bool:
        """Whether a plugin wraps a hook."""
        impls = getattr(self._pluggy.hook, hook.__name__).get_hookimpls()
        return any(impl.wrapper or impl.hookwrapper for impl in impls)

    def ask(self, hook: Callable[P, T | None], plugin: str, /, *args: P.args, **kwargs: P.kwargs) -> T | None:
        """What one plugin answers to an action hook.

        Raises:
            PluginError: it raised what isn't a loadkit error, or answered something of another type.
        """
        name = hook.__name__
        for impl in getattr(self._pluggy.hook, name).get_hookimpls():
            if impl.plugin_name == plugin:
                answer: T | None = self._call(impl, kwargs, LoadkitError)
                return None if answer is None else typed(answer, plugin, name)
        return None

    def _first(self, name: str, kwargs: Mapping[str, object], otherwise: Callable[[], Any]) -> Any:
        impls = getattr(self._pluggy.hook, name).get_hookimpls()
        own = self._own
        wraps = {id(impl) for impl in impls if impl.wrapper or impl.hookwrapper}
        ordered = sorted(impls, key=lambda i: (i.plugin_name in own, i.plugin_name))

        def inner() -> Any:
            for impl in (impl for impl in ordered if id(impl) not in wraps):
                answer = self._call(impl, kwargs, LoadkitError)
                if answer is not None:
                    return typed(answer, impl.plugin_name, name)
            return otherwise()

        return around([impl for impl in ordered if id(impl) in wraps], name, kwargs, inner)

    def versions(self) -> dict[str, str]:
        """Active plugins, name to "distribution version"."""
        return {i.name: f"{i.distribution} {i.version}".strip() for i in self.plugins if i.state == "active"}


@functools.lru_cache(maxsize=1)
def default_manager() -> PluginManager:
    """The manager that `plan()` and `load()` use: all installed plugins, discovered once a process."""
    return PluginManager()


def _names(text: str) -> frozenset[str]:
    return frozenset(part.strip() for part in text.split(",") if part.strip())
