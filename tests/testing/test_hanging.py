"""A plugin that hangs or crashes fails the check that it does so in, with the reason, and the run goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from distributions import distribution

from loadkit import Plan, Problem, hookimpl
from loadkit.testing import PATIENCE, TIME_LIMIT, Subject, known_checks, run
from loadkit.testing.time_limit import Hung, in_time

NEVER = 10**6
STATIC = {"LK201", "LK202", "LK203", "LK204"}
"""Checks that look at the hooks without calling them."""


class Hangs:
    @hookimpl
    def loadkit_check_plan(self, plan: Plan) -> list[Problem]:
        try:
            time.sleep(NEVER)
        except Exception:  # a plugin that takes everything for its own
            time.sleep(NEVER)
        return []


def test_a_hook_that_hangs_fails_its_check_and_the_run_goes_on() -> None:
    subject = Subject("mutant", Hangs())
    results = {r.code: r for r in run(subject, timeout=0.5)}
    assert set(results) == {check.code for check in known_checks()}
    assert [code for code, r in results.items() if r.verdict == "failed"] == ["LK205"]
    slow = results["LK205"]
    assert (
        "it takes longer than 0.5 s: loadkit_check_plan doesn't come back (test_hanging.py, line" in slow.said
    )
    assert "--timeout" in slow.remedy
    assert slow.scenario
    assert {code for code, r in results.items() if r.verdict == "passed"} == {*STATIC, "LK206"}
    assert results["LK301"].said == "it doesn't come back when it is asked (LK205)"


def test_a_check_that_hangs_can_be_expected() -> None:
    found = run(
        Subject("mutant", Hangs()), timeout=0.5, expect_fail={"LK205": "it waits for a licence server"}
    )
    assert {r.code: r.verdict for r in found}["LK205"] == "expected"


def test_somebody_elses_alarm_still_rings() -> None:
    rung: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: rung.append(number))
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(Hung), in_time(0.05):
            time.sleep(NEVER)
        assert not rung
        signal.pause()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert rung == [signal.SIGALRM]


def test_under_pytest_the_others_run(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(
        "import time\nfrom loadkit import Plan, Problem, hookimpl\nfrom loadkit.testing import Subject, conformance\n\n\n"
        "class Mine:\n    @hookimpl\n    def loadkit_check_plan(self, plan: Plan) -> list[Problem]:\n        time.sleep(10**6)\n"
        "        return []\n\n\n"
        "@conformance(Subject('mine', Mine()), level='1.0', timeout=0.5)\ndef test_conformance(check):\n    check()\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rfs", "-p", "no:cacheprovider", str(tmp_path)],
        capture_output=True, text=True, check=False, env=beside(tmp_path),
    )  # fmt: skip
    assert done.returncode == 1
    assert "1 failed, 5 passed" in done.stdout
    assert "LK205 Hooks return what their specification says." in done.stdout
    assert "loadkit_check_plan doesn't come back" in done.stdout
    assert "fix: find what it waits for" in done.stdout


# --- The command line, which has a process to end ----------------------------------------------------------------------------

HEAD = "import ctypes, os, time\nfrom loadkit import Context, Plan, Problem, hookimpl\n"
FOR_QLORA = (
    f"{HEAD}\n@hookimpl\ndef loadkit_check_plan(context: Context, plan: Plan) -> list[Problem]:\n"
    "    print('a plugin may print')\n    if context.request.profile == 'qlora':\n        {act}\n    return []\n"
)
ACTS: dict[str, tuple[str, str, str]] = {
    # what: code of the module, the check that fails, words
    "sleeps": (
        FOR_QLORA.format(act="time.sleep(10**6)"),
        "LK205",
        "it takes longer than 1 s: loadkit_check_plan doesn't come back (lk_stuck.py, line 8)",
    ),
    "counts in C": (  # no alarm is heard there, and no other thread runs
        FOR_QLORA.format(act="sum(range(10**15))"),
        "LK205",
        "it takes longer than 1 s, and no alarm stops it: loadkit_check_plan doesn't come back (lk_stuck.py, line 8)",
    ),
    "crashes": (
        FOR_QLORA.format(act="ctypes.string_at(0)"),
        "LK205",
        "the process dies of SIGSEGV: loadkit_check_plan doesn't come back (lk_stuck.py, line 8)",
    ),
    "leaves": (
        FOR_QLORA.format(act="os._exit(3)"),
        "LK205",
        "the process ends with exit code 3",
    ),
    "hangs wherever it plans": (
        FOR_QLORA.format(act="pass") + "    \n@hookimpl\ndef loadkit_choose_dtype() -> None:\n    time.sleep(10**6)\n",
        "LK104",
        "it takes longer than 1 s",
    ),
    "hangs when imported": (f"{HEAD}time.sleep(10**6)\n", "LK101", "importing lk_stuck takes longer than 1 s"),
    "hangs in C when imported": (f"{HEAD}sum(range(10**15))\n", "LK101", "it takes longer than 1 s, and no alarm stops it"),
}  # fmt: skip


def beside(folder: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, sys.path)])}


def checked(folder: Path, *arguments: str) -> tuple[int, Any]:
    done = subprocess.run(
        [sys.executable, "-c", "from loadkit.cli import main; main()", "check", "stuck", "--json", *arguments],
        capture_output=True, text=True, check=False, env=beside(folder), timeout=300,
    )  # fmt: skip
    assert done.stdout, done.stderr
    return done.returncode, {r["code"]: r for r in json.loads(done.stdout)}


@pytest.mark.parametrize("what", ACTS)
def test_loadkit_check_goes_on_with_the_rest(what: str, tmp_path: Path) -> None:
    module, code, words = ACTS[what]
    distribution(tmp_path, "loadkit-stuck", {"lk_stuck.py": module}, {"stuck": "lk_stuck"})
    status, results = checked(tmp_path, "--timeout", "1")
    assert status == 7
    assert set(results) == {check.code for check in known_checks()}
    assert [c for c, r in results.items() if r["verdict"] == "failed"] == [code]
    assert words in results[code]["said"]
    assert results[code]["remedy"]
    if code != "LK101":
        assert {c for c in STATIC if results[c]["verdict"] == "passed"} == STATIC
    assert all(r["said"] for r in results.values() if r["verdict"] == "skipped")


def test_the_time_is_stated() -> None:
    from click.testing import CliRunner

    from loadkit.cli.main import main

    said = " ".join(CliRunner().invoke(main, ["check", "--help"]).output.split())
    assert f"{TIME_LIMIT:g} by default" in said
    assert PATIENCE == TIME_LIMIT  # the older name
    wrong = CliRunner().invoke(main, ["check", "dtype", "--timeout", "0"])
    assert wrong.exit_code == 2
