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
STATIC = {"LK201", "LK202", "LK203", "LK204", "LK207"}
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
    results = {r.code: r for r in run(subject, timeout=3)}
    assert set(results) == {check.code for check in known_checks()}
    assert [code for code, r in results.items() if r.verdict == "failed"] == ["LK205"]
    slow = results["LK205"]
    assert (
        "it takes longer than 3 s: loadkit_check_plan doesn't come back (test_hanging.py, line" in slow.said
    )
    assert "--timeout" in slow.remedy
    assert slow.scenario
    assert {code for code, r in results.items() if r.verdict == "passed"} == {*STATIC, "LK206", "LK208"}
    assert results["LK301"].said == "it doesn't come back when it is asked (LK205)"


class HangsUntilTheAlarm:
    """The time that its check may take is up as soon as it hangs."""

    @hookimpl
    def loadkit_check_plan(self, plan: Plan) -> list[Problem]:
        signal.setitimer(signal.ITIMER_REAL, 0.01, 1)
        time.sleep(NEVER)
        return []


def test_a_check_that_hangs_can_be_expected() -> None:
    subject = Subject("mutant", HangsUntilTheAlarm())
    found = run(subject, expect_fail={"LK205": "it waits for a licence server"})
    assert {r.code: r.verdict for r in found}["LK205"] == "expected"


def test_somebody_elses_alarm_still_rings() -> None:
    rung: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: rung.append(number))
    signal.setitimer(signal.ITIMER_REAL, 1000)
    try:
        with pytest.raises(Hung), in_time(0.05):
            time.sleep(NEVER)
        assert not rung
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] < 1000
        signal.raise_signal(signal.SIGALRM)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert rung == [signal.SIGALRM]


def test_under_pytest_the_others_run(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(
        "import signal, time\nfrom loadkit import Plan, Problem, hookimpl\nfrom loadkit.testing import Subject, conformance\n\n\n"
        "class Mine:\n    @hookimpl\n    def loadkit_check_plan(self, plan: Plan) -> list[Problem]:\n        signal.setitimer(signal.ITIMER_REAL, 0.01, 1)\n"
        "        time.sleep(10**6)\n        return []\n\n\n"
        "@conformance(Subject('mine', Mine()), level='1.0')\ndef test_conformance(check):\n    check()\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rfs", "-p", "no:cacheprovider", str(tmp_path)],
        capture_output=True, text=True, check=False, env=beside(tmp_path),
    )  # fmt: skip
    assert done.returncode == 1
    assert "1 failed, 7 passed" in done.stdout
    assert "LK205 Hooks return what their specification says." in done.stdout
    assert "loadkit_check_plan doesn't come back" in done.stdout
    assert "fix: find what it waits for" in done.stdout


# --- The command line, which has a process to end

LIMIT = 12
"""Seconds a check may take: LK104 starts a process that plans, which a busy machine makes slow."""

HEAD = "import ctypes, os, sys, time\nfrom loadkit import Context, Plan, Problem, hookimpl\n"
WAIT_IN_C = "lock = (ctypes.c_char * 64)(); [ctypes.PyDLL(None).pthread_mutex_lock(lock) for _ in range(2)]"
FOR_QLORA = (
    f"{HEAD}\n@hookimpl\ndef loadkit_check_plan(context: Context, plan: Plan) -> list[Problem]:\n"
    "    print('to errors', file=sys.stderr)\n    if context.request.profile == 'qlora':\n        {act}\n    return []\n"
)
ACTS: dict[str, tuple[str, str, str]] = {
    # what: code of the module, the check that fails, words
    "sleeps": (
        FOR_QLORA.format(act="time.sleep(10**6)"),
        "LK205",
        f"it takes longer than {LIMIT} s: loadkit_check_plan doesn't come back (lk_stuck.py, line 8)",
    ),
    "waits in C": (  # no alarm is heard there, and no other thread runs
        FOR_QLORA.format(act=WAIT_IN_C),
        "LK205",
        f"it takes longer than {LIMIT} s, and no alarm stops it: loadkit_check_plan doesn't come back (lk_stuck.py, line 8)",
    ),
    "crashes": (
        FOR_QLORA.format(act="ctypes.string_at(0)"),
        "LK205",
        "the process dies of SIGSEGV: loadkit_check_plan doesn't come back (lk_stuck.py, line 8)",
    ),
    "leaves": (
        FOR_QLORA.format(act="os._exit(3)"),
        "LK205",
        "it called os._exit(3), which would end the process (lk_stuck.py, line 8)",
    ),
    "hangs wherever it plans": (
        FOR_QLORA.format(act="pass") + "    \n@hookimpl\ndef loadkit_choose_dtype() -> None:\n    time.sleep(10**6)\n",
        "LK104",
        f"it takes longer than {LIMIT} s",
    ),
    "hangs when imported": (f"{HEAD}time.sleep(10**6)\n", "LK101", f"importing lk_stuck takes longer than {LIMIT} s"),
    "hangs in C when imported": (f"{HEAD}{WAIT_IN_C}\n", "LK101", f"it takes longer than {LIMIT} s, and no alarm stops it"),
}  # fmt: skip


def beside(folder: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, sys.path)])}


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, dict[str, Any]]]:
    """What each act comes to: exit status, and code to result. They hang at the same time."""
    started, folders = {}, {what: tmp_path_factory.mktemp("stuck") for what in ACTS}
    command = [sys.executable, "-c", "from loadkit.cli import main; main()"]
    for what, folder in folders.items():
        distribution(folder, "loadkit-stuck", {"lk_stuck.py": ACTS[what][0]}, {"stuck": "lk_stuck"})
        with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
            started[what] = subprocess.Popen(
                [*command, "check", "stuck", "--json", "--timeout", str(LIMIT)],
                stdout=out, stderr=err, env=beside(folder),
            )  # fmt: skip
    found = {}
    for what, process in started.items():
        status, said = process.wait(500), (folders[what] / "out").read_text()
        assert said, (folders[what] / "err").read_text()
        found[what] = (status, {r["code"]: r for r in json.loads(said)})
    return found


@pytest.mark.parametrize("what", ACTS)
def test_loadkit_check_goes_on_with_the_rest(
    what: str, checked: dict[str, tuple[int, dict[str, Any]]]
) -> None:
    _, code, words = ACTS[what]
    status, results = checked[what]
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
