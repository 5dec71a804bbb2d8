"""Wrappers around one hook: each runs up to its `yield`, gets what came of it, and gives what goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pluggy

from loadkit.errors import LoadkitError, PluginError
from loadkit.hooks.calls import attributed, typed
from loadkit.hooks.contained import contained

__all__ = ["around"]


def around(
    wrappers: Sequence[pluggy.HookImpl], hook: str, kwargs: Mapping[str, object], inner: Callable[[], Any]
) -> Any:
    """Call `inner` with every wrapper around it, the first one outermost.

    Only the wrappers' own code is contained and carries their names: what `inner` raises goes through all of
    them as it is.

    Parameters:
        wrappers: as pluggy keeps them, marked `wrapper=True` or `hookwrapper=True`.
        hook: the hook's name.
        kwargs: what it is called with.
        inner: what is wrapped.

    Returns:
        What the outermost gave.

    Raises:
        PluginError: a wrapper raised, yielded not once, or gave what the hook doesn't answer.
    """
    if not wrappers:
        return inner()
    first, *others = wrappers
    running = _guarded(first, hook, lambda: first.function(*(kwargs[name] for name in first.argnames)))
    started = _guarded(first, hook, lambda: _step(lambda: next(running)))
    if started is not _YIELDED:
        raise PluginError(first.plugin_name, "it wraps, and didn't yield", hook=hook)
    outcome: pluggy.Result[Any] = pluggy.Result.from_call(lambda: around(others, hook, kwargs, inner))
    if first.hookwrapper:
        given = _guarded(first, hook, lambda: _step(lambda: running.send(outcome)))
        if given is _YIELDED:
            raise PluginError(first.plugin_name, "it wraps, and yielded twice", hook=hook)
        result = outcome.get_result()
    else:
        error = outcome.exception
        resumed = (
            (lambda: running.send(outcome.get_result())) if error is None else lambda: running.throw(error)
        )
        result = _guarded(first, hook, lambda: _step(resumed), passing=error)
        if result is _YIELDED:
            raise PluginError(first.plugin_name, "it wraps, and yielded twice", hook=hook)
    return None if result is None else typed(result, first.plugin_name, hook)


_YIELDED = object()


def _step(going: Callable[[], Any]) -> Any:
    """Run a wrapper up to its next `yield` or its end; what it returned then."""
    try:
        going()
    except StopIteration as end:
        return end.value
    return _YIELDED


def _guarded(
    impl: pluggy.HookImpl, hook: str, running: Callable[[], Any], passing: BaseException | None = None
) -> Any:
    """Run a wrapper's own code; what it raises carries its name, but for errors that say what to do, and what
    only passes through it."""
    try:
        with contained():
            return running()
    except LoadkitError:
        raise
    except Exception as error:
        if error is passing:
            raise
        raise attributed(impl.plugin_name, hook, error) from error
