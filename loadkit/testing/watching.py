"""Watch a plugin while one of its hooks runs: what it does to the process, the files and the network, what it
looks at, and what it prints."""

from __future__ import annotations

import _thread
import datetime
import genericpath
import importlib.metadata
import importlib.util
import io
import os
import platform
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Literal

from loadkit.hooks import calls, contained
from loadkit.testing.process_state import changes

__all__ = ["Seen", "watched"]

Kind = Literal["changes", "does", "reads", "prints"]


@dataclass
class Seen:
    """What was seen while hooks ran, as (hook, words)."""

    changes: list[tuple[str, str]] = field(default_factory=list)
    does: list[tuple[str, str]] = field(default_factory=list)
    reads: list[tuple[str, str]] = field(default_factory=list)
    prints: list[tuple[str, str]] = field(default_factory=list)


BOUNDARY = calls.call.__code__
"""Where the core calls a plugin: frames above it are the core's."""

ACTS = {
    "socket.connect": "connects to {1}",
    "socket.getaddrinfo": "looks up {0!r}",
    "socket.gethostbyname": "looks up {0!r}",
    "socket.bind": "listens at {1}",
    "subprocess.Popen": "starts the process {0}",
    "os.system": "starts the process {0}",
    "os.posix_spawn": "starts the process {0}",
    "os.exec": "starts the process {0}",
    "os.fork": "forks the process",
    "os.forkpty": "forks the process",
    "os.kill": "sends a signal",
    "os.mkdir": "makes the folder {0}",
    "os.rmdir": "removes {0}",
    "os.remove": "removes {0}",
    "os.rename": "renames {0}",
    "os.link": "links {0}",
    "os.symlink": "links {0}",
    "os.truncate": "truncates {0}",
    "os.chmod": "changes {0}",
    "os.chown": "changes {0}",
    "os.utime": "changes {0}",
    "sqlite3.connect": "opens the database {0}",
    "ctypes.dlopen": "loads the library {0}",
}
"""Audit events of Python that no hook causes while planning, in words."""

MACHINE = {"socket.gethostname": "this machine's name", "shutil.disk_usage": "this machine's disk"}
FILES = ("os.listdir", "os.scandir")

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CLOCK = (time.time, time.time_ns, time.localtime, time.gmtime, time.ctime)
_HERE = ("cpu_count", "sched_getaffinity", "uname", "getloadavg", "getlogin", "getuid", "getpid", "statvfs")
_BUILTINS: dict[Any, str] = {
    **dict.fromkeys(_CLOCK, "the clock"),
    **{getattr(os, name): f"this machine (os.{name})" for name in _HERE if hasattr(os, name)},
    os.urandom: "the system's random numbers",
    socket.gethostname: "this machine's name",
}
_THREADS = tuple(
    getattr(_thread, n) for n in ("start_new_thread", "start_joinable_thread") if hasattr(_thread, n)
)
_DATES = (datetime.datetime, datetime.date)
_FUNCTIONS: dict[CodeType, str] = {
    type(os.environ).__getitem__.__code__: "the environment",
    type(os.environ).__iter__.__code__: "the environment",
    importlib.util.find_spec.__code__: "which packages are installed",
    importlib.metadata.Distribution.from_name.__func__.__code__: "which packages are installed",  # type: ignore[attr-defined]
    platform.uname.__code__: "this machine (platform)",
    shutil.disk_usage.__code__: "this machine's disk",
}

_LOOKS: dict[CodeType, str] = {
    genericpath.exists.__code__: "path",
    genericpath.isfile.__code__: "path",
    genericpath.isdir.__code__: "s",
    genericpath.getsize.__code__: "filename",
    genericpath.getmtime.__code__: "filename",
    Path.stat.__code__: "self",
}
"""Functions that look whether a file is there, to the parameter that is its path."""

_STATS = tuple(name for name in ("stat", "lstat", "access", "readlink") if hasattr(os, name))
"""Functions of `os` that look at a file, of which no audit event tells (Python 3.11)."""
_REAL = {getattr(os, name): name for name in _STATS}

_recording: list[Callable[[str, tuple[Any, ...]], None]] = []


@contextmanager
def watched(seen: Seen, hook: str, home: str, *, planning: bool, draws: bool = False) -> Iterator[None]:
    """Note what a plugin does in the block, and take its changes of the process back.

    Parameters:
        seen: takes the notes.
        hook: which hook it runs.
        home: the top package of the plugin's module; "" for an object.
        planning: whether nothing at all may be looked at or done; otherwise changes and prints are noted.
        draws: while loading, whether it may draw torch's random numbers.
    """
    changed: list[str] = []
    printed: list[str] = []
    contained.put_back.clear()
    modules = set(sys.modules)
    with ExitStack() as stack:
        stack.enter_context(_printing(printed, changed))
        stack.enter_context(changes(changed, planning=planning, draws=draws))
        if planning:
            stack.enter_context(_acts(seen, hook, home))
            stack.enter_context(_reads(seen, hook, home))
            stack.enter_context(_looks(seen, hook, home))
        yield
    changed += sorted(contained.put_back - {*changed})
    came_in = {name.partition(".")[0] for name in sys.modules.keys() - modules} - {home}
    if not came_in - set(sys.stdlib_module_names):  # what libraries change as they come in isn't its doing
        seen.changes += ((hook, name) for name in changed)
    seen.prints += ((hook, text) for text in printed)


@contextmanager
def _printing(printed: list[str], changed: list[str]) -> Iterator[None]:
    """Note what is printed to standard output, as text and by its descriptor, and what else becomes of it."""
    before, text = sys.stdout, io.StringIO()
    kept = None
    with suppress(OSError, ValueError):
        before.flush()
        kept = os.dup(1)
    with tempfile.TemporaryFile() as file:
        if kept is not None:
            os.dup2(file.fileno(), 1)
        sys.stdout = text
        try:
            yield
        finally:
            if sys.stdout is not text or text.closed:
                changed.append("sys.stdout")
            sys.stdout = before
            if kept is not None:
                os.dup2(kept, 1)
                os.close(kept)
            file.seek(0)
            said = ("" if text.closed else text.getvalue()) + file.read(1000).decode(errors="replace")
            if said:
                printed.append(said.strip()[:60])


@contextmanager
def _acts(seen: Seen, hook: str, home: str) -> Iterator[None]:
    _install_audit_hook()

    def note(event: str, args: tuple[Any, ...]) -> None:
        if event in ACTS:
            if _by_plugin(sys._getframe(2), home) and not _about_bytecode(args):
                seen.does.append((hook, ACTS[event].format(*args, "?", "?")))
        elif event in MACHINE:
            if _by_plugin(sys._getframe(2), home):
                seen.reads.append((hook, MACHINE[event]))
        elif event == "open" and isinstance(args[0], str | bytes | os.PathLike):
            path, writing = os.fspath(args[0]), bool((args[2] or 0) & _WRITING)
            if not (writing or _foreign(path)) or _about_bytecode(args):
                return
            if _by_plugin(sys._getframe(2), home) and os.fsdecode(path) != os.devnull:
                words = "writes the file" if writing else "the file"
                (seen.does if writing else seen.reads).append((hook, f"{words} {os.fsdecode(path)}"))
        elif event in FILES and isinstance(args[0], str | bytes | os.PathLike) and _foreign(args[0]):
            words = f"the folder {os.fsdecode(os.fspath(args[0]))}"
            seen.reads += [(hook, words)] if _by_plugin(sys._getframe(2), home) else []

    _recording.append(note)
    try:
        yield
    finally:
        _recording.pop()


@cache
def _install_audit_hook() -> None:
    """Once, since Python keeps an audit hook for ever."""

    def record(event: str, args: tuple[Any, ...]) -> None:
        if _recording:
            _recording[-1](event, args)

    sys.addaudithook(record)


@contextmanager
def _reads(seen: Seen, hook: str, home: str) -> Iterator[None]:
    """Note what is asked of the clock, the machine and the environment: a profile function sees the calls."""

    def note(frame: FrameType, event: str, arg: Any) -> None:
        words = ""
        if event == "c_call":
            if arg in _THREADS and _by_plugin(frame, home):  # no audit event tells of it (Python 3.11)
                seen.does.append((hook, "starts a thread"))
            with suppress(TypeError):
                words = _BUILTINS.get(arg, "")
                if arg in _REAL and _outside(frame):  # by a name of its own: os has another function now
                    words = f"a file (os.{_REAL[arg]})"
            if not words and any(getattr(arg, "__self__", None) is each for each in _DATES):
                words = "the clock" if arg.__name__ in ("now", "today", "utcnow") else ""
        elif event == "call":
            words = _FUNCTIONS.get(frame.f_code, "")
            if words == "which packages are installed" and _own_distribution(frame, home):
                words = ""
            if frame.f_code in _LOOKS:
                path = frame.f_locals.get(_LOOKS[frame.f_code])
                if isinstance(path, str | bytes | os.PathLike) and _foreign(path):
                    words = f"whether {os.fsdecode(path)} is there"
        if words and (hook, words) not in seen.reads and _by_plugin(frame, home):
            named = frame.f_locals.get("key") if words == "the environment" else None
            seen.reads.append((hook, f"{words} ({named})" if isinstance(named, str) else words))

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(before)


@contextmanager
def _looks(seen: Seen, hook: str, home: str) -> Iterator[None]:
    """Note at which files is looked by the functions of `os`: a profile function doesn't see their paths."""
    _installed()  # looks itself, once

    def looking(real: Callable[..., Any]) -> Callable[..., Any]:
        def look(path: Any, *args: Any, **kwargs: Any) -> Any:
            if isinstance(path, str | bytes | os.PathLike) and _foreign(path):
                words = f"whether {os.fsdecode(path)} is there"
                if (hook, words) not in seen.reads and _by_plugin(sys._getframe(1), home):
                    seen.reads.append((hook, words))
            return real(path, *args, **kwargs)

        return look

    for real, name in _REAL.items():
        setattr(os, name, looking(real))
    try:
        yield
    finally:
        for real, name in _REAL.items():
            setattr(os, name, real)


def _own_distribution(frame: FrameType, home: str) -> bool:
    asked = str(frame.f_locals.get("name", "")).replace("-", "_").lower()
    return asked.partition(".")[0] in (home.lower(), "loadkit")


def _outside(frame: FrameType) -> bool:
    """Whether a frame is neither of Python's own library nor of the core."""
    top = str(frame.f_globals.get("__name__", "")).partition(".")[0]
    return top not in sys.stdlib_module_names and top != "loadkit"


def _by_plugin(frame: FrameType | None, home: str) -> bool:
    """Whether it is the plugin that does what is done in a frame, not the core for it, a logger or an import
    of somebody else's."""
    importing = False
    while frame is not None and frame.f_code is not BOUNDARY:
        name = str(frame.f_globals.get("__name__", ""))
        # What stands in for a function of the system is called by the plugin, the rest there by the core.
        through = name == contained.__name__ and frame.f_code.co_name in ("refusing", "starting")
        if name.startswith("loadkit.") and not (through or name.startswith("loadkit.testing")):
            return False
        if name in ("logging", "warnings", "linecache", "traceback"):
            return False
        if name.partition(".")[0] == home and frame.f_code.co_name == "<module>":
            return not importing  # its own module, which is imported
        importing = importing or name.startswith("importlib._bootstrap")
        frame = frame.f_back
    return frame is not None and not importing


@cache
def _installed() -> tuple[str, ...]:
    """Folders in which code and its data lie, which may be read."""
    roots = {sys.prefix, sys.base_prefix, *(p for p in sys.path if p)}
    return tuple({p for r in roots for p in (os.path.abspath(r), os.path.realpath(r))})


def _foreign(path: str | bytes | os.PathLike[Any]) -> bool:
    """Whether a file is no part of what is installed."""
    full = os.path.abspath(os.fsdecode(path))
    inside = any(full == root or full.startswith(root.rstrip(os.sep) + os.sep) for root in _installed())
    return not inside and full != os.devnull


def _about_bytecode(args: tuple[Any, ...]) -> bool:
    return any(
        isinstance(a, str) and ("__pycache__" in Path(a).parts or a.endswith(".pyc")) for a in args[:2]
    )
