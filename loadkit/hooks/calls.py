"""Calling one plugin: it comes back, what it raises carries its name, and what it answers is of its hook's
type."""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Mapping
from typing import Any, TypeVar

import pluggy

from loadkit.errors import PluginError
from loadkit.hooks import contained as contained_module
from loadkit.hooks.contained import Left, contained, raised
from loadkit.hooks.result_types import wrong_type

__all__ = ["attributed", "call", "typed"]

T = TypeVar("T")

OURS = (contained_module.__file__, __file__)
"""Files whose frames are no news about where a plugin raised."""

_planning = threading.local()


def call(impl: pluggy.HookImpl, kwargs: Mapping[str, object], passing: type[Exception] = PluginError) -> Any:
    """Call one plugin; what it raises carries its name, but for errors that already say what to do."""
    hook = impl.function.__name__
    running: list[tuple[str, str]] = _planning.__dict__.setdefault("running", [])
    if "context" in kwargs and (impl.plugin_name, hook) in running:
        fault = "it plans, and so asks itself, for ever: decide from the facts in context"
        raise PluginError(impl.plugin_name, f"{fault}; {_without(impl.plugin_name)}", hook=hook)
    running.append((impl.plugin_name, hook))
    try:
        with contained():
            limit = sys.getrecursionlimit()
            try:
                return impl.function(*(kwargs[name] for name in impl.argnames))
            finally:  # right here, as no function could be called under a lower one
                if sys.getrecursionlimit() != limit:
                    sys.setrecursionlimit(limit)
                    contained_module.put_back.add("Python's own hooks or limits")
    except passing:
        raise
    except Exception as error:
        raise attributed(impl.plugin_name, hook, error) from error
    finally:
        running.pop()


def typed(answer: T, plugin: str, hook: str) -> T:
    """The answer, if it is of the hook's type."""
    if fault := wrong_type(hook, answer):
        raise PluginError(plugin, f"{fault}; {_without(plugin)}", hook=hook)
    return answer


def attributed(plugin: str, hook: str, error: Exception) -> PluginError:
    """What a plugin raised, with its name and where it was raised."""
    told = error.__cause__ if isinstance(error, Left) and error.__cause__ is not None else error
    frames = [f for f in traceback.extract_tb(told.__traceback__) if f.filename not in OURS]
    where = f" ({os.path.basename(frames[-1].filename)}, line {frames[-1].lineno})" if frames else ""
    said = str(error) if isinstance(error, Left) else f"it raised {raised(error)}"
    return PluginError(plugin, f"{said}{where}; {_without(plugin)}", hook=hook)


def _without(plugin: str) -> str:
    return f"tell its author, or go on without it: LOADKIT_DISABLE={plugin}"
