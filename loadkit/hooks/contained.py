"""A plugin's code, run so that it comes back: what would end the process is an error that names it."""

from __future__ import annotations

import dis
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

__all__ = ["Left", "PassesPlugins", "contained", "raised", "shown"]

_SYSTEM = sys.modules[getattr(os.open, "__module__", "os")]
"""The module behind `os`: `posix`, or `nt`."""

_NAMES = ("_exit", "abort", "execv", "execve", "kill", "killpg")

ENDS = (
    *((module, name) for module in (os, _SYSTEM) for name in _NAMES if hasattr(module, name)),
    (signal, "raise_signal"),
)
"""Functions that end the process, or put another in its place, without a word."""

_HARMLESS = frozenset(
    getattr(signal, name)
    for name in ("SIGCHLD", "SIGCONT", "SIGURG", "SIGWINCH", "SIGINT")
    if hasattr(signal, name)
)
"""Signals that end no process by default, and Ctrl-C's, which Python makes an exception of."""

STARTS = tuple(n for n in ("_start_new_thread", "_start_joinable_thread") if hasattr(threading, n))
"""What `threading` starts a thread with (until Python 3.12, and since)."""

put_back: set[str] = set()
"""What plugins changed of Python itself and was put back, for the conformance kit to tell."""

_lock = threading.Lock()
_here = threading.local()
_depth = 0
_kept: dict[tuple[Any, str], Callable[..., Any]] = {}


class PassesPlugins(BaseException):
    """What is raised from outside while a plugin runs, such as a time limit: it isn't the plugin's doing."""


class Left(Exception):  # noqa: N818 - what happened
    """A plugin's code would have ended the process; the text says how."""


class _Ends(BaseException):
    """Raised in place of a function of `ENDS`; no `Exception`, so that few catch it."""


@contextmanager
def contained() -> Iterator[None]:
    """Run a plugin's code: what would end the process raises `Left`; Ctrl-C and `Exception`s go through.

    What it takes from `sys.path` is put back, as nothing could be imported any more, and so is a lower
    recursion limit.

    Raises:
        Left: `sys.exit`, `os._exit` and their like, and every other exception that isn't an `Exception`.
    """
    path, before, limit = sys.path, list(sys.path), sys.getrecursionlimit()
    with _no_ends():
        try:
            try:
                yield
            finally:
                if sys.getrecursionlimit() < limit:
                    sys.setrecursionlimit(limit)
                    put_back.add("Python's own hooks or limits")
                if sys.path is not path or sys.path != before:
                    sys.path = _whole_path(path, before)
                    put_back.add("sys.path")
        except (Exception, PassesPlugins):
            raise
        except _Ends as error:
            raise Left(str(error)) from error
        except BaseException as error:
            if type(error) is KeyboardInterrupt and not _by_raise(error.__traceback__):
                raise  # somebody pressed Ctrl-C while the plugin ran
            raise Left(f"it raised {raised(error)}, which would end the process") from error


def _whole_path(path: list[str], before: list[str]) -> list[str]:
    """The list that `sys.path` was, with all that was in it, after what was added."""
    found: Any = sys.path
    now = [*found] if isinstance(found, list) else []
    if any(each not in now for each in before):
        now = [*(each for each in now if each not in before and isinstance(each, str)), *before]
    path[:] = now
    return path


@contextmanager
def _no_ends() -> Iterator[None]:
    """Have the functions of `ENDS` raise, in this thread of this process, as long as the block takes."""
    global _depth
    inner = getattr(_here, "process", 0)
    with _lock:
        if _depth == 0:
            for module, name in ENDS:
                _kept[module, name] = getattr(module, name)
                setattr(module, name, _refusing(name, _kept[module, name]))
            for name in STARTS:
                _kept[threading, name] = getattr(threading, name)
                setattr(threading, name, _starting(_kept[threading, name]))
        _depth += 1
    _here.process = os.getpid()
    try:
        yield
    finally:
        _here.process = inner
        with _lock:
            _depth -= 1
            if _depth == 0:
                for (module, name), real in _kept.items():
                    setattr(module, name, real)


def _starting(real: Callable[..., Any]) -> Callable[..., Any]:
    """Start threads of a plugin's so that they end the process as little as it does, as long as they run."""

    def starting(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        def within(*given: Any) -> Any:
            with _no_ends():
                return function(*given)

        return real(within if _inside() else function, *args, **kwargs)

    return starting


def _refusing(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
    def refusing(*args: Any, **kwargs: Any) -> Any:
        if not _inside():  # another thread, a forked child, or a kept name
            return real(*args, **kwargs)
        if name in ("kill", "killpg", "raise_signal") and not _at_oneself(name, *args):
            return real(*args, **kwargs)
        given = ", ".join(map(shown, args))
        home = "signal" if name == "raise_signal" else "os"
        raise _Ends(f"it called {home}.{name}({given}), which would end the process")

    return refusing


def _inside() -> bool:
    """Whether a plugin runs here."""
    return getattr(_here, "process", 0) == os.getpid()


def _at_oneself(name: str, *args: Any) -> bool:
    """Whether a signal would end this process."""
    if len(args) != (1 if name == "raise_signal" else 2):
        return False
    target, number = args[0], args[-1]
    aimed = name == "raise_signal"
    if name == "kill":
        aimed = target in (0, os.getpid(), -os.getpgrp())
    elif name == "killpg":
        aimed = target in (0, os.getpgrp())
    if not aimed or number == 0 or number in _HARMLESS:
        return False
    return signal.getsignal(number) == signal.SIG_DFL


def raised(error: BaseException) -> str:
    """An exception in words, whatever its class makes of being printed."""
    try:
        with contained():
            text = str(error)
    except Exception:
        text = "(it can't be printed)"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def shown(value: object) -> str:
    """A value as text, whatever its class makes of being printed."""
    try:
        with contained():
            return repr(value)
    except Exception:
        return f"<{type(value).__name__} that can't be printed>"


def _by_raise(trace: TracebackType | None) -> bool:
    """Whether an exception comes of a `raise` in the code, not of a signal that Python noticed there."""
    last = None
    while trace is not None:
        last, trace = trace, trace.tb_next
    if last is None or last.tb_lasti < 0:
        return False
    code = last.tb_frame.f_code.co_code
    return dis.opname[code[last.tb_lasti]] in ("RAISE_VARARGS", "RERAISE")
