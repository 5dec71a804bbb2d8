"""How long a check may take: what hangs is stopped, and the run goes on."""

from __future__ import annotations

import signal
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from loadkit.hooks.contained import PassesPlugins

__all__ = ["TIME_LIMIT", "Hung", "in_time", "where_in"]

TIME_LIMIT = 120.0
"""Seconds that a check may take in one scenario by default, with importing torch and transformers."""


class Hung(PassesPlugins):
    """A check took too long; the text says where it was. No `Exception`, so that no plugin catches it."""


@contextmanager
def in_time(seconds: float) -> Iterator[None]:
    """Stop what takes longer, with the system's alarm clock.

    The alarm, which raises `Hung`, reaches whatever runs Python or waits in the system: a sleep, a lock, a
    socket. It can't reach code in C that doesn't come back, other threads than the main one, or Windows:
    `loadkit check` has a process to end for those.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)  # nothing interrupts this, however slow the machine
        frames = [(f.f_code.co_name, f.f_code.co_filename, line) for f, line in traceback.walk_stack(frame)]
        said = f"it takes longer than {seconds:g} s{where_in(frames)}"
        signal.setitimer(signal.ITIMER_REAL, 1)  # again: what is raised inside a destructor is only printed
        raise Hung(said)

    before, started = signal.signal(signal.SIGALRM, stop), time.monotonic()
    others, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if others:  # somebody else's alarm
            left = max(others - (time.monotonic() - started), 0.001)
            signal.setitimer(signal.ITIMER_REAL, left, interval)


def where_in(frames: list[tuple[str, str, int]]) -> str:
    """The hook that was running, in words, from function, file and line of each frame, innermost first."""
    for function, file, line in frames:
        if function.startswith("loadkit_"):
            name = file.replace("\\", "/").rpartition("/")[2]
            return f": {function} doesn't come back ({name}, line {line})"
    return ""
