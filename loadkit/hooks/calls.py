"""Calling one plugin: what it raises carries its name, and what it answers is of its hook's type."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from typing import Any, TypeVar

import pluggy

from loadkit.errors import PluginError
from loadkit.hooks.result_types import wrong_type

__all__ = ["attributed", "call", "typed"]

T = TypeVar("T")


def call(impl: pluggy.HookImpl, kwargs: Mapping[str, object], passing: type[Exception] = PluginError) -> Any:
    """Call one plugin; what it raises carries its name, but for errors that already say what to do."""
    try:
        return impl.function(*(kwargs[name] for name in impl.argnames))
    except passing:
        raise
    except Exception as error:
        raise attributed(impl.plugin_name, impl.function.__name__, error) from error


def typed(answer: T, plugin: str, hook: str) -> T:
    """The answer, if it is of the hook's type."""
    if fault := wrong_type(hook, answer):
        remedy = f"tell its author, or go on without it: LOADKIT_DISABLE={plugin}"
        raise PluginError(plugin, f"{fault}; {remedy}", hook=hook)
    return answer


def attributed(plugin: str, hook: str, error: Exception) -> PluginError:
    """What a plugin raised, with its name and where it was raised."""
    where = inspect.trace()[-1]
    return PluginError(
        plugin,
        f"it raised {type(error).__name__}: {error} ({os.path.basename(where.filename)}, line {where.lineno}); "
        f"tell its author, or go on without it: LOADKIT_DISABLE={plugin}",
        hook=hook,
    )
