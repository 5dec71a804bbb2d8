"""Loads beside each other in threads, and in the child of a process that has loaded, are as one alone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from forks import Forks

import loadkit
from loadkit.loading.process_wide import one_at_a_time

Tiny = Callable[..., Path]

LOADS_IN_A_CHILD = """
import os, signal, sys, threading, torch
import loadkit
from loadkit.loading.process_wide import one_at_a_time
torch.set_num_threads(2)
folder, profiles = sys.argv[1], [p or None for p in sys.argv[2].split(",")]
for profile in profiles:
    loadkit.load(folder, profile)
torch.rand(2_000_000).add_(1).sum()  # OpenMP has its threads now, whatever a load needs
holding = threading.Event()

def hold():
    with one_at_a_time():
        holding.set()
        threading.Event().wait()

threading.Thread(target=hold, daemon=True).start()
holding.wait()
for profile in profiles:
    pid = os.fork()
    if not pid:
        signal.alarm(60)
        loadkit.load(folder, profile)
        assert torch.get_num_threads() == 2, "as it was"
        os._exit(0)
    print(profile, os.waitpid(pid, 0)[1])
"""


def test_threads_get_what_they_asked_for(tiny: Tiny) -> None:
    """transformers sets the default dtype of the process while it builds a model."""
    asked: list[dict[str, Any]] = [
        {"source": tiny("mistral"), "dtype": "bfloat16"},
        {"source": tiny("mistral"), "dtype": "float32"},
        {"source": tiny("llama"), "dtype": "float16"},
        {"source": tiny("mistral"), "profile": "inference-4bit"},
        {"source": tiny("mistral"), "profile": "qlora", "adapter_dtype": "float32"},
    ]
    alone = [{n: t.dtype for n, t in loadkit.load(**o).model.state_dict().items()} for o in asked]
    wrong: list[str] = []

    def work(first: int) -> None:
        for number in range(first, first + len(asked)):
            at = number % len(asked)
            try:
                got = {n: t.dtype for n, t in loadkit.load(**asked[at]).model.state_dict().items()}
            except loadkit.LoadkitError as error:
                wrong.append(f"{asked[at]}: {error}")
            else:
                wrong.extend(f"{asked[at]}: {n}" for n, dtype in alone[at].items() if got.get(n) != dtype)

    threads = [threading.Thread(target=work, args=(first,)) for first in (0, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert torch.get_default_dtype() == torch.float32


def test_one_load_may_be_within_another() -> None:
    with one_at_a_time(), one_at_a_time():
        pass


def test_a_forked_child_loads(tiny: Tiny, forks: Forks) -> None:
    """With the parent's threads gone, and its lock held by one of them."""
    done = forks.run(
        LOADS_IN_A_CHILD, str(tiny("mistral")), ",inference-4bit", environ={"OMP_NUM_THREADS": "2"}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["None", "0", "inference-4bit", "0"]


def test_a_child_that_imports_loadkit_later_knows(forks: Forks) -> None:
    code = (
        "import os, sys, torch\n"
        "for name in [n for n in sys.modules if n.split('.')[0] == 'loadkit']: del sys.modules[name]\n"
        "pid = os.fork()\n"
        "if not pid:\n"
        "    from loadkit.facts.machine.forks import forked_with_torch\n"
        "    os._exit(0 if forked_with_torch() else 1)\n"
        "sys.exit(os.waitpid(pid, 0)[1] >> 8)"
    )
    assert forks.run(code).returncode == 0


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="Linux tells")
def test_this_process_was_started_not_forked() -> None:
    from loadkit.facts.machine import forks as module

    assert not module._born_by_fork() or module.forked_with_torch() is False
