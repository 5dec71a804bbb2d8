"""How long a check may take: what hangs is stopped, and the run goes on."""

from __future__ import annotations

import signal
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["PATIENCE", "Hung", "in_time", "where_in"]

PATIENCE = 120.0
"""Seconds that a check may take in one scenario, unless somebody says otherwise. Importing torch and transformers is part of it."""


class Hung(BaseException):
    """A check took longer than it may; the text says where it was. Not an `Exception`, so that no plugin catches it."""


@contextmanager
def in_time(seconds: float) -> Iterator[None]:
    """Stop what takes longer, with the system's alarm clock.

    The alarm reaches whatever runs Python or waits in the system: a sleep, a lock, a socket. It can't reach code in C that doesn't come
    back, threads other than the main one, or Windows; `loadkit check` has a process to end for those.

    Parameters:
        seconds: how long it may take.

    Raises:
        Hung: it took longer.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        frames = [(f.f_code.co_name, f.f_code.co_filename, line) for f, line in traceback.walk_stack(frame)]
        raise Hung(f"it takes longer than {seconds:g} s{where_in(frames)}")

    before, started = signal.signal(signal.SIGALRM, stop), time.monotonic()
    # Again every second: what is raised inside a destructor is only printed. Somebody else's alarm is put back afterwards.
    others, interval = signal.setitimer(signal.ITIMER_REAL, seconds, 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if others:
            left = max(others - (time.monotonic() - started), 0.001)
            signal.setitimer(signal.ITIMER_REAL, left, interval)


def where_in(frames: list[tuple[str, str, int]]) -> str:
    """The hook that was running, in words.

    Parameters:
        frames: function, file and line of each frame, innermost first.
    """
    for function, file, line in frames:
        if function.startswith("loadkit_"):
            name = file.replace("\\", "/").rpartition("/")[2]
            return f": {function} doesn't come back ({name}, line {line})"
    return ""
