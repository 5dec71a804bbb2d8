"""The checks in a subprocess, which can be ended: for plugins that crash, or hang where no alarm helps.

The subprocess runs this module as a program: it reads its task from its input, and writes a line for each
result, in order. Where it ends too soon, the check that comes next has failed, and another one does the rest.
"""

from __future__ import annotations

import faulthandler
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import metadata
from typing import IO

import msgspec

from loadkit.testing.kit import Check, Result, Unmet
from loadkit.testing.processes import same_modules
from loadkit.testing.scenarios import PLAIN, Scenario
from loadkit.testing.subjects import Subject, named, subject_of
from loadkit.testing.time_limit import TIME_LIMIT, where_in
from loadkit.testing.verdicts import LEVEL, SLOW, cases, checked_expectations, checked_level, run_one

__all__ = ["run_apart"]

GRACE = 2.0
"""Seconds after the alarm, until the process is ended that the alarm doesn't reach."""

IMPORT = "LK101"
"""The check that the plugin can be imported; it is the first."""

CRASH = "find what ends the process; a hook raises an exception, or answers with a Problem"
"""How to keep a check from ending its process."""

FRAME = re.compile(r'File "(.+)", line (\d+) in (\w+)')


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """What the subprocess is to do: the checks from `first` on, of a plugin that hung in the check `hung`."""

    plugin: str
    distribution: str
    level: str
    timeout: float
    scenarios: tuple[Scenario, ...]
    expect_fail: dict[str, str]
    first: str
    hung: str = ""


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """A check is done; `hung` is the one in which the plugin hung so far."""

    result: Result
    hung: str = ""


def run_apart(
    entry: metadata.EntryPoint,
    *,
    level: str = LEVEL,
    scenarios: Sequence[Scenario] = (),
    expect_fail: Mapping[str, str] | None = None,
    timeout: float = TIME_LIMIT,
) -> Iterator[Result]:
    """Run all checks on an installed plugin, in processes that end with what hangs or crashes in them.

    The parameters are those of `run`; each check's result comes as soon as it is there.

    Raises:
        LoadkitError: as `run` does.
    """
    checked_level(level)
    expected = checked_expectations(expect_fail or {})
    checks = {check.code: check for check, _ in cases(scenarios)}
    left = list(checks)
    task = Task(
        plugin=entry.name,
        distribution=entry.dist.name if entry.dist else "",
        level=level,
        timeout=timeout,
        scenarios=tuple(scenarios),
        expect_fail=dict(expected),
        first=left[0],
    )
    while left:
        with tempfile.TemporaryFile() as errors, _subprocess(task, errors) as process:
            assert process.stdout is not None
            for line in process.stdout:
                done = msgspec.json.decode(line, type=Done)
                left.remove(done.result.code)
                task = msgspec.structs.replace(task, hung=done.hung)
                yield done.result
            code = process.wait()
            errors.seek(0)
            printed = errors.read().decode(errors="replace")
        if left:
            ended = checks[left.pop(0)]
            yield _ended(ended, entry, task, _how(code, printed, timeout))
            task = msgspec.structs.replace(task, hung=task.hung or ended.code, first=left[0] if left else "")


@contextmanager
def _subprocess(task: Task, errors: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        env=same_modules(),
    ) as process:
        assert process.stdin is not None
        try:
            with suppress(BrokenPipeError):
                process.stdin.write(msgspec.json.encode(task))
                process.stdin.close()
            yield process
        finally:
            process.kill()


def _how(code: int, printed: str, timeout: float) -> str:
    """How the process ended that didn't finish, from its exit code and what it printed as errors."""
    where = where_in([(name, file, int(line)) for file, line, name in FRAME.findall(printed)])
    if "Timeout (" in printed:
        return f"it takes longer than {timeout:g} s, and no alarm stops it{where}"
    if code < 0:
        return f"the process dies of {signal.Signals(-code).name}{where}"
    last = printed.strip().splitlines()[-1:] or ["it said nothing"]
    return f"the process ends with exit code {code}: {last[0]}"


def _ended(check: Check, entry: metadata.EntryPoint, task: Task, how: str) -> Result:
    def fails(subject: Subject, scenario: Scenario) -> None:
        raise Unmet(how)

    failing = msgspec.structs.replace(
        check, run=fails, remedy=SLOW if "longer" in how else CRASH, scenarios="none"
    )
    expected = task.expect_fail.get(check.code, "")
    return run_one(failing, Subject(entry.name, None, entry), [PLAIN], level=task.level, expected=expected)


def main() -> None:
    """The subprocess. What the plugin prints goes where errors go, so that it isn't taken for a result."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    faulthandler.enable()
    task = msgspec.json.decode(sys.stdin.buffer.read(), type=Task)
    found = next(
        each
        for each in named(task.plugin)
        if (each.entry.name, each.distribution) == (task.plugin, task.distribution)
    )
    if task.hung == IMPORT:
        subject = Subject(found.name, None, found.entry, "doesn't come back")
    else:
        with _ending(task.timeout):
            subject = subject_of(found, task.timeout)
    subject.hung, subject.asked = task.hung, task.scenarios
    for check, scenarios in cases(task.scenarios):
        if check.code >= task.first:
            result = run_one(
                _guarded(check, task.timeout),
                subject,
                scenarios,
                level=task.level,
                expected=task.expect_fail.get(check.code, ""),
                timeout=task.timeout,
            )
            out.write(msgspec.json.encode(Done(result=result, hung=subject.hung)) + b"\n")
            out.flush()


def _guarded(check: Check, timeout: float) -> Check:
    def run(subject: Subject, scenario: Scenario) -> str | None:
        with _ending(timeout):
            return check.run(subject, scenario)

    return msgspec.structs.replace(check, run=run)


@contextmanager
def _ending(timeout: float) -> Iterator[None]:
    """End the process, with its stack printed, if the alarm hasn't helped."""
    faulthandler.dump_traceback_later(timeout + GRACE, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    main()
