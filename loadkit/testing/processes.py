"""Processes of their own in which the kit tries a plugin: what importing it does, and what it answers there.

Run as a program, this reads a `Question` from its input and prints an `Account` to its output.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import msgspec

from loadkit.testing.accounts import Account, Question

__all__ = ["HEAVY", "Silent", "ask", "same_modules"]

HEAVY = ("torch", "transformers", "bitsandbytes", "peft", "accelerate")
"""Libraries that take seconds to import: only load-time hooks may, in their bodies."""


class Silent(Exception):  # noqa: N818 - what happened
    """The other process ended without an account; the text is what it said last."""


def same_modules() -> dict[str, str]:
    """The environment of a process that finds the same modules and distributions as this one."""
    path = os.pathsep.join(part or os.getcwd() for part in sys.path)
    return {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}


def ask(question: Question, *seeds: int) -> list[Account]:
    """What processes of their own tell, all at the same time.

    Parameters:
        seeds: of the hashes of texts, a process each, somewhere else on the disk; one as here by default.

    Raises:
        Silent: one ended without an account.
    """
    with tempfile.TemporaryDirectory() as elsewhere:
        perturbed = {"TZ": "Pacific/Kiritimati", "ELSEWHERE": "1"}
        running = [
            subprocess.Popen(
                [sys.executable, "-m", __name__],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                env={**same_modules(), **({} if seed is None else {"PYTHONHASHSEED": str(seed), **perturbed})},
                cwd=None if seed is None else elsewhere,
            )
            for seed in seeds or (None,)
        ]  # fmt: skip
        try:
            return [_account(process, question) for process in running]
        finally:
            for process in running:
                process.kill()
                with process:
                    pass


def _account(process: subprocess.Popen[bytes], question: Question) -> Account:
    out, err = process.communicate(msgspec.json.encode(question))
    try:
        return msgspec.json.decode(out, type=Account)
    except msgspec.DecodeError:
        lines = err.decode(errors="replace").strip().splitlines() or ["it ended without a word"]
        raise Silent(lines[-1].strip()) from None


def main() -> None:
    """The other process. What the plugin prints goes where errors go, so that it isn't taken for its
    account."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    question = msgspec.json.decode(sys.stdin.buffer.read(), type=Question)
    account = _imported(question) if question.module else _planned(question)
    out.write(msgspec.json.encode(account))
    out.close()


def _imported(question: Question) -> Account:
    began, worked = time.perf_counter(), time.process_time()
    import loadkit.hooks.manager  # noqa: F401 - it is there before any plugin
    from loadkit.testing.process_state import changes
    from loadkit.testing.watching import Seen, watched

    # On a busy machine everything takes that much longer: loadkit's own import tells how much.
    busy = max(1.0, (time.perf_counter() - began) / max(time.process_time() - worked, 0.01))
    began = time.perf_counter()
    with changes([], planning=True):  # whatever it sets is to be set again below, where its doing is watched
        importlib.import_module(question.module)
    seconds, heavy = (time.perf_counter() - began) / busy, _heavy()
    if heavy:
        return Account(heavy=heavy, seconds=seconds)
    # Once more, for what its own code does: the libraries that it imports are there by now.
    for name in [n for n in sys.modules if n.partition(".")[0] == question.home]:
        del sys.modules[name]
    seen = Seen()
    with suppress(Exception), watched(seen, "importing it", question.home, planning=True):
        importlib.import_module(question.module)
    did = [
        *(f"changes {what}" for _, what in seen.changes),
        *(what for _, what in seen.does),
        *(f"prints {what!r}" for _, what in seen.prints),
        *(f"looks at {what}" for _, what in seen.reads),
    ]
    return Account(seconds=seconds, seen=tuple(did))


def _planned(question: Question) -> Account:
    from loadkit.hooks.manager import PluginManager
    from loadkit.testing.scenarios import Scenario
    from loadkit.testing.subjects import named, subject_of

    (found,) = [
        each
        for each in named(question.plugin)
        if (each.entry.name, each.distribution) == (question.plugin, question.distribution)
    ]
    PluginManager(environ={"LOADKIT_DISABLE": found.name})  # what others import isn't this one's doing
    subject = subject_of(found)
    before = set(_heavy())
    subject.manager()
    answers: list[tuple[str, ...]] = []
    failure = ""
    for raw in question.scenarios:
        trace = subject.trace(msgspec.json.decode(raw, type=Scenario))
        failure = failure or trace.failure
        answers.append(told(trace.answers))
    return Account(
        heavy=tuple(m for m in _heavy() if m not in before), answers=tuple(answers), failure=failure
    )


def told(answers: Sequence[Any]) -> tuple[str, ...]:
    """Answers as text, to compare; where objects lie in memory is no part of it."""
    import re

    return tuple(re.sub(r"0x[0-9a-f]+", "0x", f"{hook} {value!r}") for hook, value in answers)


def _heavy() -> tuple[str, ...]:
    return tuple(m for m in HEAVY if m in sys.modules)


if __name__ == "__main__":
    main()
