"""What goes wrong on one rank only, as the launched processes live through it."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from ranks.launch import report

import loadkit
from loadkit import Finding, LoadError, Machine, PluginManager, hookimpl

KILL = os.kill
"""Kept from before a plugin runs, when the one in `os` refuses to end the process."""

__all__ = ["FAULTS", "death", "faults", "joining", "parting"]

RANK = int(os.environ.get("RANK", "0"))
FAULTY = 1

Way = Callable[[Path], dict[str, Any]]


class Acting:
    """A plugin that does something while the model is loaded, and lets loadkit go on."""

    def __init__(self, act: Callable[[], None]) -> None:
        self.act = act

    @hookimpl
    def loadkit_load_model(self, plan: object) -> None:
        self.act()


class Finder:
    """A plugin that finds something on one rank."""

    @hookimpl
    def loadkit_audit_model(self, plan: object, model: object) -> list[Finding]:
        if RANK != FAULTY:
            return []
        return [Finding(stage="weights", plugin="finder", code="odd", message="this rank's memory is odd")]


def acting(act: Callable[[], None]) -> dict[str, Any]:
    manager = PluginManager()
    manager.register(Acting(act), "acting")
    return {"plugin_manager": manager}


def damaged(folders: Path) -> dict[str, Any]:
    return {"source": folders / ("cut" if RANK == FAULTY else "own")}


def other_checkpoint(folders: Path) -> dict[str, Any]:
    return {"source": folders / ("other" if RANK == FAULTY else "own")}


def other_option(folders: Path) -> dict[str, Any]:
    return {
        "source": folders / "own",
        "attn_implementation": "eager" if RANK == FAULTY else "sdpa",
    }


def other_plugin(folders: Path) -> dict[str, Any]:
    """Two distributions of one plugin, as two nodes may have them."""
    sys.path.insert(0, str(folders / ("site-2" if RANK == FAULTY else "site-1")))
    importlib.invalidate_caches()
    manager = PluginManager()
    sys.path.pop(0)
    return {"source": folders / "own", "plugin_manager": manager}


def out_of_memory(folders: Path) -> dict[str, Any]:
    return {"source": folders / "own"}


def loading(folders: Path) -> dict[str, Any]:
    """The other rank would load for an hour."""

    def act() -> None:
        if RANK == FAULTY:
            raise LoadError("this rank's disk is gone")
        for _ in range(36_000):
            time.sleep(0.1)

    return {"source": folders / "own", **acting(act)}


def interrupted(folders: Path) -> dict[str, Any]:
    def act() -> None:
        if RANK == FAULTY:
            KILL(os.getpid(), signal.SIGINT)  # Ctrl-C
            time.sleep(60)

    return {"source": folders / "own", **acting(act)}


def audited(folders: Path) -> dict[str, Any]:
    manager = PluginManager()
    manager.register(Finder(), "finder")
    return {"source": folders / "own", "plugin_manager": manager}


def nothing(folders: Path) -> dict[str, Any]:
    return {"source": folders / "own"}


FAULTS: dict[str, Way] = {
    "damaged": damaged,
    "other_checkpoint": other_checkpoint,
    "other_option": other_option,
    "other_plugin": other_plugin,
    "out_of_memory": out_of_memory,
    "loading": loading,
    "interrupted": interrupted,
    "audited": audited,
    "nothing": nothing,
}


def faults(out: str, folders: str) -> None:
    """Go through all of them in one process: a load that failed leaves the next one as it should be."""
    found, seconds = {}, {}
    for name, way in FAULTS.items():
        start = time.monotonic()
        with _little_memory() if name == "out_of_memory" and RANK == FAULTY else nullcontext():
            found[name] = attempt(way(Path(folders)))
        seconds[name] = time.monotonic() - start
    report(out, {"errors": found, "seconds": seconds})


def death(out: str, folder: str, who: str) -> None:
    """One rank is killed in the middle of its load; what the others say."""

    moment = Path(out) / "moment"

    def act() -> None:
        if int(who) == RANK:
            moment.write_text(str(time.time()))
            KILL(os.getpid(), signal.SIGKILL)

    error = attempt({"source": folder, **acting(act)})
    report(out, {"error": error, "seconds": time.time() - float(moment.read_text())})


def joining(out: str, folder: str) -> None:
    """Rank 0 refuses at once, while the other is still making its output quiet, which imports for seconds."""
    ranks = importlib.import_module("loadkit.ranks.ranks")
    errors = []
    for moment in (0, 8):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ranks, "_quiet", lambda wait=0.3 * moment: _slowly(wait))
            errors.append(attempt({"source": folder, "device_map": "auto" if RANK == 0 else None}))
    report(out, errors)


@contextmanager
def _slowly(seconds: float) -> Iterator[None]:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)
    yield


def parting(out: str, folder: str) -> None:
    """Rank 0, which keeps the store, fails and is gone at once."""

    def act() -> None:
        if RANK == 0:
            raise LoadError("this rank's disk is gone")

    report(out, attempt({"source": folder, **acting(act)}))
    os._exit(0)


def attempt(options: dict[str, Any]) -> str:
    """The error that a load ends with; "" for none."""
    try:
        loadkit.load(options.pop("source"), "inference", **options)
    except (loadkit.LoadkitError, KeyboardInterrupt) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _little_memory() -> AbstractContextManager[None]:
    @contextmanager
    def patched() -> Any:
        with pytest.MonkeyPatch.context() as patch:
            packages = loadkit.planning.pipeline.this_machine().packages  # type: ignore[attr-defined]
            small = Machine(memory=1024, cores=1, packages=packages)
            patch.setattr("loadkit.planning.pipeline.this_machine", lambda: small)
            yield

    return patched()
