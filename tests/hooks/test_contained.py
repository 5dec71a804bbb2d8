"""What a plugin can't do: end the process without a word, take what is loadkit's own, or break what a program
reads. In processes and distributions as users have them."""

from __future__ import annotations

import contextlib
import json
import os
import posix
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from distributions import distribution

import loadkit
from loadkit import PluginError, PluginManager, Problem, hookimpl
from loadkit.hooks.contained import Left, contained, raised, shown
from loadkit.request.options import RESERVED

HEAD = "import os, sys\nfrom loadkit import Claim, Context, Option, Plan, Problem, Profile, hookimpl\n"
ASKED = HEAD + "\n@hookimpl\ndef loadkit_check_plan(plan: Plan) -> list[Problem]:\n    {act}\n    return []\n"
QUIET = ASKED.format(act="pass")
MAIN = "from loadkit.cli import main; main()"


def run(folder: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """`loadkit`, in a process that finds the distributions in a folder."""
    path = os.pathsep.join([str(folder), *filter(None, sys.path)])
    return subprocess.run(
        [sys.executable, "-c", MAIN, *arguments], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": path, **environ}, timeout=120,
    )  # fmt: skip


def states(folder: Path, **environ: str) -> dict[str, Any]:
    done = run(folder, "plugins", "--json", **environ)
    assert done.returncode == 0, done.stderr
    return {p["name"]: p for p in json.loads(done.stdout)}


class Stops(BaseException):
    pass


def imported_here() -> Any:
    from os import _exit

    return _exit


def close_nothing() -> None:
    raise GeneratorExit


ENDS = {
    "sys.exit": (lambda: sys.exit(3), "SystemExit: 3"),
    "quit": (lambda: quit(), "SystemExit"),
    "os._exit": (lambda: os._exit(3), r"os\._exit\(3\)"),
    "os.abort": (lambda: os.abort(), r"os\.abort\(\)"),
    "os.execv": (lambda: os.execvp("true", ["true"]), r"os\.execv"),
    "posix": (lambda: posix._exit(3), r"_exit\(3\)"),
    "kept": (lambda: imported_here()(3), r"_exit\(3\)"),
    "kill": (lambda: os.kill(os.getpid(), signal.SIGKILL), r"os\.kill"),
    "killpg": (lambda: os.killpg(os.getpgrp(), signal.SIGTERM), r"os\.killpg"),
    "raise_signal": (lambda: signal.raise_signal(signal.SIGTERM), r"signal\.raise_signal"),
    "interrupt": (lambda: (_ for _ in ()).throw(Stops("now")), "Stops: now"),
    "generator": (lambda: close_nothing(), "GeneratorExit"),
}


@pytest.mark.parametrize("how", ENDS)
def test_what_would_end_the_process_is_an_error(how: str) -> None:
    act, words = ENDS[how]
    names = ("_exit", "abort", "execv", "kill", "killpg")
    before = {name: getattr(os, name) for name in names} | {"start": threading._start_new_thread}
    with pytest.raises(Left, match=words), contained():
        act()
    after = {name: getattr(os, name) for name in names} | {"start": threading._start_new_thread}
    assert after == before


def test_a_thread_that_a_plugin_starts_ends_nothing_as_long_as_it_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: told.append(str(args.exc_value)))
    go_on, before = threading.Event(), getattr(os, "_exit")  # noqa: B009 - mypy knows no name of it

    def leave() -> None:
        go_on.wait()
        os._exit(3)

    with contained():
        thread = threading.Thread(target=leave)
        thread.start()
    go_on.set()
    thread.join()
    assert told == ["it called os._exit(3), which would end the process"]
    assert getattr(os, "_exit") is before  # noqa: B009 - as it was: threads of other tests may still run


def test_signals_for_others_pass() -> None:
    child = subprocess.Popen(["sleep", "1000"])
    with contained():
        os.kill(os.getpid(), 0)
        os.kill(child.pid, signal.SIGTERM)
    assert child.wait(10) == -signal.SIGTERM


def test_what_cant_be_printed_is_told_all_the_same() -> None:
    class Mute(Exception):  # noqa: N818 - only that it can't be printed
        def __str__(self) -> str:
            sys.exit(3)

        __repr__ = __str__

    assert raised(Mute()) == "Mute: (it can't be printed)"
    assert shown(Mute()) == "<Mute that can't be printed>"


def test_an_interrupt_that_a_plugin_raises_isnt_ctrl_c() -> None:
    with pytest.raises(Left, match="KeyboardInterrupt"), contained():
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), contained():
        signal.raise_signal(signal.SIGINT)


def test_a_child_that_a_plugin_forks_may_end() -> None:
    with contained():
        child = os.fork()
        if child == 0:
            os._exit(0)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def test_a_hook_that_leaves_is_named(tiny: Any) -> None:
    class Leaves:
        @hookimpl
        def loadkit_check_plan(self) -> list[Problem]:
            sys.exit(0)

    manager = PluginManager(environ={})
    manager.register(Leaves(), "leaves")
    with pytest.raises(
        loadkit.PlanError,
        match=r"'leaves' in loadkit_check_plan: it raised SystemExit: 0.*test_contained\.py",
    ):
        loadkit.plan(tiny("mistral"), plugin_manager=manager)


def test_a_hook_that_plans_is_told_so(tiny: Any) -> None:
    manager = PluginManager(environ={})

    class Plans:
        @hookimpl
        def loadkit_choose_dtype(self, context: loadkit.Context) -> None:
            loadkit.plan(context.request.source, plugin_manager=manager)

    manager.register(Plans(), "plans")
    with pytest.raises(loadkit.PlanError, match="it plans, and so asks itself"):
        loadkit.plan(tiny("mistral"), plugin_manager=manager)


def test_installed_plugins_break_nothing_but_themselves(tmp_path: Path, tiny: Any) -> None:
    """All at once, as the list of one process: each is told with its reason, loadkit's own stay, the plan is
    JSON and warns of each."""
    bad = {
        "leaves": ("import os\nos._exit(7)\n", "it called os._exit(7)"),
        "exits": ("import sys\nsys.exit('enough')\n", "it raised SystemExit: enough"),
        "gone": ("import no_module_of_that_name\n", "no_module_of_that_name"),
        "taker": (
            f"{HEAD}\n@hookimpl\ndef loadkit_options() -> list[Option]:\n    return [Option(name='lora_r', type='int', help='mine', stage='adapter')]\n",
            "the option 'lora_r', which is an option of 'adapter'",
        ),
        "flagged": (
            f"{HEAD}\n@hookimpl\ndef loadkit_options() -> list[Option]:\n    return [Option(name='profile', type='str', help='mine', stage='dtype')]\n",
            "the option 'profile', which is an argument",
        ),
        "unspeakable": (
            f"{HEAD}\n@hookimpl\ndef loadkit_options() -> list[Option]:\n    return [Option(name='mi ne', type='str', help='mine', stage='dtype')]\n",
            "'mi ne' can't be a keyword and a flag",
        ),
        "untyped": (
            f"{HEAD}\n@hookimpl\ndef loadkit_options() -> list[Option]:\n    return [Option(name='mine', type='srt', help='mine', stage='dtype')]\n",
            "'srt' isn't a type of options",
        ),
        "lazy": (f"{QUIET}\ndef __getattr__(name):\n    sys.exit(4)\n", "it raised SystemExit: 4"),
        "mute": (f"{HEAD}\nclass Mute(Exception):\n    def __str__(self):\n        sys.exit(3)\nraise Mute\n", "Mute: (it can't be printed)"),
        "shy": (f"LOADKIT_CONFLICTS = {{'loud': 'both patch the norms'}}\n{QUIET}", "it can't be beside 'loud' (both patch the norms)"),
    }  # fmt: skip
    for name, (code, _) in bad.items():
        distribution(tmp_path, f"lk-{name}", {f"lk_{name}.py": code}, {name: f"lk_{name}"})
    loud = ASKED.format(act="print('from a hook'); os.write(1, b'raw'); sys.stdout.close()")
    loud = f"import atexit\natexit.register(print, 'at the end')\nprint('at import')\n{loud}"
    distribution(tmp_path, "lk-loud", {"lk_loud.py": loud}, {"loud": "lk_loud"})
    distribution(tmp_path, "lk-twin", {"lk_twin.py": ""}, {"twin": "loadkit_plugins.dtype"})
    distribution(tmp_path, "lk-imposter", {"lk_imposter.py": QUIET}, {"dtype": "lk_imposter"})
    (tmp_path / "lk_imposter-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: loadkit\nVersion: 99\n"
    )
    distribution(tmp_path, "lk-like", {"lk_like.py": QUIET}, {"dtype": "lk_like"})
    distribution(tmp_path, "lk-later", {"lk_later.py": "from loadkit import Later\n"}, {"later": "lk_later"}, requires="loadkit>=9")  # fmt: skip

    found = states(tmp_path)
    for name, (_, words) in bad.items():
        assert (found[name]["state"], words in found[name]["reason"]) == ("broken", True), found[name]
    assert "requires loadkit>=9, and this is loadkit" in found["later"]["reason"]
    others = [name for name in found if name.startswith("dtype (")]
    assert len(others) == 2
    for name in others:
        assert "is the name of a plugin of loadkit's own" in found[name]["reason"]
    assert found["twin"]["reason"] == "TypeError: it is what plugin 'dtype' is already: one name is enough"
    assert found["loud"]["state"] == "active"
    assert {p["state"] for p in found.values() if p["distribution"] == "loadkit"} == {"active"}

    done = run(tmp_path, "plan", str(tiny("mistral")), "--profile", "qlora", "--lora-r", "4", "--json")
    assert done.returncode == 0, done.stderr
    plan = loadkit.Plan.from_json(done.stdout)
    assert plan.adapter is not None
    assert plan.adapter.options["r"] == 4
    assert {p.plugin for p in plan.warnings if p.code == "broken-plugin"} == {
        *bad,
        "later",
        "twin",
        *others,
    }
    assert all(p.severity == "warning" and p.remedy for p in plan.warnings if p.code == "broken-plugin")
    for printed in ("at import", "from a hook", "raw"):
        assert printed in done.stderr

    strict = run(tmp_path, "plan", str(tiny("mistral")), LOADKIT_STRICT="1")
    assert strict.returncode != 0
    assert "LOADKIT_STRICT is set" in strict.stderr


UNREAD = {
    # what is wrong, the file, its bytes, the words
    "no-equals": ("entry_points.txt", b"[loadkit]\nnonsense\n", "its entry_points.txt can't be read"),
    "no-module": ("entry_points.txt", b"[loadkit]\nno-module = not a:module!\n", "which names no module"),
    "no-text": ("METADATA", b"\xff\xfeName: x\n", "its metadata can't be read"),
    "elsewhen": ("METADATA", b"Metadata-Version: 2.1\nName: elsewhen\nVersion: 1\nRequires-Dist: LoadKit[test] (>=9)\n", "requires loadkit>=9"),
}  # fmt: skip
FINE = {
    "silent": ("METADATA", b""),
    "odd-version": ("METADATA", b"Metadata-Version: 2.1\nName: odd-version\nVersion: not one\nRequires-Dist: loadkit >>= what\n"),
    "odd-marker": ("METADATA", b"Metadata-Version: 2.1\nName: odd-marker\nVersion: 1\nRequires-Dist: loadkit>=9; nobody_knows == 'this'\n"),
    "for-python-2": ("METADATA", b"Metadata-Version: 2.1\nName: for-python-2\nVersion: 1\nRequires-Dist: loadkit>=9; python_version<'3'\n"),
}  # fmt: skip


def test_a_distribution_that_cant_be_read_is_told_and_the_others_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, (file, content, *_) in {**UNREAD, **FINE}.items():
        module = f"lk_{name.replace('-', '_')}"
        distribution(tmp_path, name, {f"{module}.py": QUIET}, {name: module})
        (tmp_path / f"{name.replace('-', '_')}-1.0.dist-info" / file).write_bytes(content)
    monkeypatch.syspath_prepend(str(tmp_path))
    found = {p.name: p for p in PluginManager(environ={}).plugins}
    for name, (_, _, words) in UNREAD.items():
        assert (found[name].state, words in found[name].reason) == ("broken", True), found[name]
    assert {n for n in FINE if found[n].state == "active"} == set(FINE)
    assert {p.state for p in found.values() if p.distribution == "loadkit"} == {"active"}
    for name in {**UNREAD, **FINE}:
        sys.modules.pop(f"lk_{name.replace('-', '_')}", None)


def test_distributions_can_be_named(tmp_path: Path) -> None:
    two = {"lk_two_a.py": QUIET, "lk_two_b.py": QUIET}
    distribution(tmp_path, "lk-two", two, {"one-of-two": "lk_two_a", "other-of-two": "lk_two_b"})
    distribution(tmp_path, "Lk_Mine", {"lk_mine.py": QUIET}, {"mine": "lk_mine"})

    def active(**environ: str) -> set[str]:
        return {n for n, p in states(tmp_path, **environ).items() if p["state"] == "active"}

    everything = active()
    own = everything - {"one-of-two", "other-of-two", "mine"}
    assert active(LOADKIT_DISABLE="lk-two") == {*own, "mine"}
    assert active(LOADKIT_PLUGINS="loadkit,mine") == {*own, "mine"}
    assert active(LOADKIT_PLUGINS="loadkit, lk-mine") == {*own, "mine"}
    assert active(LOADKIT_PLUGINS="loadkit") == own
    assert (
        "no installed plugin or distribution is called so"
        in run(tmp_path, "plugins", LOADKIT_DISABLE="lk-tow").stderr
    )


def test_loadkits_own_names_cant_be_taken_by_hand_either() -> None:
    class Takes:
        @hookimpl
        def loadkit_options(self) -> list[loadkit.Option]:
            return [
                loadkit.Option(name="mine", type="str", help="x", stage="dtype", aliases=("torch_dtype",))
            ]

    with pytest.raises(PluginError, match="'torch_dtype', which is an option of 'dtype'"):
        PluginManager(environ={}).register(Takes(), "takes")


def test_reserved_names_are_those_of_the_functions_and_commands() -> None:
    """An option of such a name could never be given."""
    import inspect

    from loadkit.cli.load import command as load_command
    from loadkit.cli.plan import command as plan_command

    arguments = {*inspect.signature(loadkit.plan).parameters, *inspect.signature(loadkit.load).parameters}
    options = PluginManager(environ={}).options.found
    flags = {p.name for c in (plan_command, load_command) for p in c.params} - set(options)
    spelt = {
        s.lstrip("-").replace("-", "_")
        for c in (plan_command, load_command)
        for p in c.params
        if p.name not in options
        for s in (*p.opts, *p.secondary_opts)
        if s.startswith("--")
    }
    assert arguments | flags | (spelt - {"no_strict"}) <= RESERVED | {"options"}


def empties_the_path() -> None:
    sys.path.clear()


def replaces_the_path() -> None:
    sys.path = ["/nowhere"]


def forgets_the_path() -> None:
    sys.path = None  # type: ignore[assignment]


def lowers_the_limit() -> None:
    frame, depth = sys._getframe(), 0
    while frame is not None:
        frame, depth = frame.f_back, depth + 1  # type: ignore[assignment]
    for limit in range(depth, depth + 10):  # the lowest that Python takes here
        with contextlib.suppress(RecursionError):
            sys.setrecursionlimit(limit)
            return


@pytest.mark.parametrize("act", [empties_the_path, replaces_the_path, forgets_the_path, lowers_the_limit])
def test_what_python_itself_needs_is_put_back(act: Callable[[], None], tiny: Any) -> None:
    class Breaks:
        @hookimpl
        def loadkit_check_plan(self) -> list[Any]:
            act()
            return []

        @hookimpl
        def loadkit_options(self) -> list[Any]:
            act()
            return []

    path, before, limit = sys.path, [*sys.path], sys.getrecursionlimit()
    manager = PluginManager(environ={})
    manager.register(Breaks(), "breaks")
    assert loadkit.plan(tiny("mistral"), plugin_manager=manager).dtype == "bfloat16"
    assert sys.path is path
    assert set(before) <= set(path)
    assert sys.getrecursionlimit() == limit


INSTALLED_BREAKERS = {
    "clears": "import sys\nsys.path.clear()\n",
    "lowers": "import sys\nsys.setrecursionlimit(120)\n",
}


@pytest.mark.parametrize("name", INSTALLED_BREAKERS)
def test_an_installed_plugin_that_breaks_python_costs_no_plan(name: str, tmp_path: Path, tiny: Any) -> None:
    hook = "from loadkit import hookimpl\n@hookimpl\ndef loadkit_check_plan(context, plan):\n    {}\n    return []\n"
    act = INSTALLED_BREAKERS[name]
    inside = "; ".join(act.splitlines())
    distribution(tmp_path, "lk-breaks", {"lk_breaks.py": act + hook.format(inside)}, {"breaks": "lk_breaks"})
    done = subprocess.run(
        [sys.executable, "-c", "from loadkit.cli import main; main()", "plan", str(tiny("mistral"))],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])},
    )
    assert "Traceback" not in done.stderr
    assert done.returncode == 0, done.stderr
