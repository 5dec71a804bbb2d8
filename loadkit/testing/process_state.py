"""What a process is like: what a plugin could change of it, made unlike anything a plugin would choose.

A change that repeats is invisible to who compares before and after: the second seed 0 changes nothing. So
each look begins with values that nobody chooses, and ends with those that were there.
"""

from __future__ import annotations

import gc
import itertools
import locale
import logging
import os
import random
import signal
import socket
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any, NamedTuple

__all__ = ["changes"]


class Part(NamedTuple):
    """One part of a process's state.

    name: in words, as what was changed.
    read: what it is.
    put: makes it be what was read.
    odd: makes it what nobody chooses; None to leave it as it is.
    """

    name: str
    read: Callable[[], Any]
    put: Callable[[Any], object]
    odd: Callable[[], object] | None = None


_numbers = itertools.count(982_451_653)


def _set_environment(found: Mapping[str, str]) -> None:
    if found != dict(os.environ):
        os.environ.clear()
        os.environ.update(found)


@cache
def _elsewhere() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="loadkit-elsewhere-")


def _filters() -> tuple[Any, ...]:
    return (list(warnings.filters), warnings.showwarning)


def _set_filters(found: Any) -> None:
    warnings.filters[:], warnings.showwarning = found[0], found[1]  # type: ignore[index]
    warnings._filters_mutated()  # type: ignore[attr-defined]


def _logging() -> Any:
    root = logging.getLogger()
    loggers = {n: x for n, x in logging.root.manager.loggerDict.items() if isinstance(x, logging.Logger)}
    levels = {n: (x.level, x.propagate, x.disabled, *x.handlers) for n, x in loggers.items()}
    return {"": (root.level, *root.handlers), "disable": logging.root.manager.disable, **levels}


def _set_logging(found: Any) -> None:
    root = logging.getLogger()
    root.level, root.handlers[:] = found[""][0], found[""][1:]
    logging.root.manager.disable = found["disable"]
    for name, about in found.items():
        logger = logging.root.manager.loggerDict.get(name)
        if not isinstance(logger, logging.Logger) or name in ("", "disable"):
            continue
        if about != (logger.level, logger.propagate, logger.disabled, *logger.handlers):
            logger.level, logger.propagate, logger.disabled = about[:3]
            logger.handlers[:] = about[3:]
    logging.root.manager._clear_cache()  # type: ignore[attr-defined]


def _odd_logging() -> None:
    root = logging.getLogger()
    root.level, root.handlers[:] = 37, []
    logging.root.manager.disable = 1


def _odd_filters() -> None:
    warnings.filters.insert(0, ("default", None, UserWarning, None, next(_numbers)))  # type: ignore[attr-defined]


def _set_stdlib(found: Any) -> None:
    sys.excepthook, sys.displayhook = found[0], found[1]
    sys.setrecursionlimit(found[2])


def _umask() -> int:
    mask = os.umask(0o77)
    os.umask(mask)
    return mask


def _handlers() -> dict[int, Any]:
    return {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}


def _set_handlers(found: Mapping[int, Any]) -> None:
    with suppress(ValueError, TypeError):  # another thread, or a handler that isn't Python's
        for number, handler in found.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)


def _collector() -> tuple[bool, Any]:
    return gc.isenabled(), gc.get_threshold()


def _set_collector(found: tuple[bool, Any]) -> None:
    (gc.enable if found[0] else gc.disable)()
    gc.set_threshold(*found[1])


PARTS = (
    Part("the environment", lambda: dict(os.environ), _set_environment),
    Part("the random numbers of Python", random.getstate, random.setstate, lambda: random.seed(next(_numbers))),
    Part("sys.path", lambda: list(sys.path), lambda found: sys.path.__setitem__(slice(None), found)),
    Part("the finders of imports", lambda: list(sys.meta_path), lambda f: sys.meta_path.__setitem__(slice(None), f)),
    Part("the filters of warnings", _filters, _set_filters, _odd_filters),
    Part("the levels or handlers of loggers", _logging, _set_logging, _odd_logging),
    Part("the handlers of signals", _handlers, _set_handlers),
    Part("the locale", lambda: locale.setlocale(locale.LC_ALL), lambda f: locale.setlocale(locale.LC_ALL, f)),
    Part("the mask of new files", _umask, os.umask),
    Part("Python's own hooks or limits", lambda: (sys.excepthook, sys.displayhook, sys.getrecursionlimit()), _set_stdlib),
    Part("the garbage collector", _collector, _set_collector),
    Part("the time limit of sockets", socket.getdefaulttimeout, socket.setdefaulttimeout),
    Part("the threads that run", lambda: {t for t in threading.enumerate() if t.is_alive()}, lambda found: None),
)  # fmt: skip

FOLDER = Part("the working folder", os.getcwd, os.chdir, lambda: os.chdir(_elsewhere().name))


def _of_torch(*, draws: bool) -> Iterator[Part]:
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "initial_seed"):
        return
    if draws:
        yield Part("the seed of torch", torch.initial_seed, lambda seed: None)
    else:
        yield Part(
            "torch's random numbers", lambda: torch.get_rng_state().numpy().tobytes(), lambda state: None
        )
    yield Part("torch's default dtype", torch.get_default_dtype, torch.set_default_dtype)
    yield Part("the threads of torch", torch.get_num_threads, torch.set_num_threads)
    yield Part("torch's gradient mode", torch.is_grad_enabled, torch.set_grad_enabled)
    yield Part(
        "torch's matmul precision",
        torch.get_float32_matmul_precision,
        torch.set_float32_matmul_precision,
    )
    yield Part(
        "torch's deterministic mode",
        torch.are_deterministic_algorithms_enabled,
        torch.use_deterministic_algorithms,
    )
    yield Part("CUDA, which is initialised", torch.cuda.is_initialized, lambda found: None)


@contextmanager
def changes(found: list[str], *, planning: bool, draws: bool = False) -> Iterator[None]:
    """Add what the block changes of the process to `found`, in words, and take it back.

    Parameters:
        planning: nothing may change; otherwise libraries come in, which bring settings of their own, and
            files are where the working folder is.
        draws: random numbers of torch may be drawn, as new weights are.
    """
    parts = [*PARTS, FOLDER] if planning else [p for p in (*PARTS, FOLDER) if p.name in KEPT_WHILE_LOADING]
    torch = sys.modules.get("torch")
    random_state = torch.get_rng_state() if torch is not None and hasattr(torch, "initial_seed") else None
    parts += _of_torch(draws=draws)
    was = [part.read() for part in parts]
    if random_state is not None and torch is not None:
        # Not torch.manual_seed, which keeps the stack of each call for a device that isn't there yet.
        torch.default_generator.manual_seed(next(_numbers))
    for part in parts:
        if part.odd is not None and (planning or part is not FOLDER):
            part.odd()
    odd = {part.name for part in parts if part.odd is not None or part.name in OF_GENERATOR}
    before = [p.read() if p.name in odd else there for p, there in zip(parts, was, strict=True)]
    try:
        yield
    finally:
        for part, there, original in zip(parts, before, was, strict=True):
            now = part.read()
            if _differs(part, there, now):
                found.append(part.name)
            if now != original:
                part.put(original)
        if random_state is not None and torch is not None:
            torch.set_rng_state(random_state)


OF_GENERATOR = ("the seed of torch", "torch's random numbers")

KEPT_WHILE_LOADING = frozenset({
    "the random numbers of Python", "the working folder", "the locale", "the mask of new files", "the handlers of signals",
    "Python's own hooks or limits", "the time limit of sockets",
})  # fmt: skip
"""What loading changes neither, whatever libraries it brings in."""


def _set(logger: tuple[Any, ...]) -> bool:
    """Whether a logger was made to be unlike a new one."""
    silent = all(isinstance(handler, logging.NullHandler) for handler in logger[3:])
    return not (logger[:3] == (logging.NOTSET, True, False) and silent)


def _differs(part: Part, before: Any, after: Any) -> bool:
    if part.name.startswith("the levels"):  # new loggers are nobody's loss, as long as nothing is set of them
        new = (about for name, about in after.items() if name not in before)
        return any(after.get(name) != about for name, about in before.items()) or any(map(_set, new))
    if part.name.startswith("the threads that"):
        return bool(after - before)
    return bool(before != after)
