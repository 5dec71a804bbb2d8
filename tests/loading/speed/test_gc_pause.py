"""The collector rests while a load imports and builds, and is afterwards as it was."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from loadkit.plugins import pause_gc

Tiny = Callable[..., Path]


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    on = gc.isenabled()
    yield
    (gc.enable if on else gc.disable)()
    gc.unfreeze()


class Loop:
    """Garbage that only the collector finds."""

    def __init__(self) -> None:
        self.me = self


@pytest.mark.parametrize("on", [True, False])
def test_it_is_as_it_was_afterwards(on: bool) -> None:
    (gc.enable if on else gc.disable)()
    with pause_gc():
        assert not gc.isenabled()
        with pause_gc():
            pass
        assert not gc.isenabled()
    assert gc.isenabled() is on


def test_an_error_wakes_it() -> None:
    with pytest.raises(KeyError), pause_gc():
        raise KeyError
    assert gc.isenabled()


def test_the_last_of_several_threads_wakes_it() -> None:
    """The first to begin is the first to end: what it found mustn't be put back while another one needs rest,
    nor forgotten."""
    begun, end = threading.Event(), threading.Event()

    def other() -> None:
        with pause_gc():
            begun.set()
            assert end.wait(60)

    thread = threading.Thread(target=other)
    with pause_gc():
        thread.start()
        assert begun.wait(60)
    assert not gc.isenabled()
    end.set()
    thread.join()
    assert gc.isenabled()


def test_garbage_made_meanwhile_is_found_later() -> None:
    with pause_gc():
        gone = weakref.ref(Loop())
    assert gone() is not None
    gc.collect()
    assert gone() is None


def test_it_doesnt_go_through_what_was_made_as_soon_as_it_wakes() -> None:
    with pause_gc():
        made = [[number] for number in range(50_000)]
    assert gc.get_count()[0] < len(made)
    assert not gc.get_freeze_count()


def test_what_others_froze_stays_frozen() -> None:
    gc.freeze()
    frozen = gc.get_freeze_count()
    assert frozen
    with pause_gc():
        pass
    assert gc.get_freeze_count() > 0.9 * frozen  # a few are freed meanwhile, by whoever held them


def test_a_load_imports_without_it(tiny: Tiny) -> None:
    code = """
import gc, json, sys
import loadkit
loadkit.plan(sys.argv[1], "inference")
runs = []
gc.callbacks.append(lambda phase, about: runs.append("torch" in sys.modules) if phase == "start" else None)
loadkit.load(sys.argv[1], "inference")
print(json.dumps([sum(runs), gc.isenabled(), gc.get_freeze_count()]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tiny("mistral"))], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    runs, on, frozen = json.loads(done.stdout.splitlines()[-1])
    assert runs < 100  # without rest, importing torch and transformers alone makes about 900
    assert on
    assert not frozen
