"""The first minute at the command line: a checkpoint of one's own, verdict, reasons, codes, wrong words."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from distributions import distribution
from forks import Forks

from loadkit import LoadkitError
from loadkit.cli.demo_run import kept
from loadkit.cli.explain import explanations
from loadkit.cli.grouped_help import GroupedCommand
from loadkit.cli.main import COMMANDS, GROUPS, main
from loadkit.text.kinds import kinds_text

COMMAND = "import sys; sys.argv[0] = 'loadkit'; from loadkit.cli import main; main()"
Run = Callable[..., subprocess.CompletedProcess[str]]
Tiny = Callable[..., Path]


@pytest.fixture
def run(forks: Forks) -> Run:
    def running(*arguments: object, **environ: str) -> subprocess.CompletedProcess[str]:
        return forks.run(COMMAND, *arguments, environ={"COLUMNS": "60", **environ})

    return running


def test_the_profile_is_the_second_word(tiny: Tiny, run: Run) -> None:
    done = run("plan", tiny("mistral"), "qlora")
    assert done.returncode == 0, done.stderr
    assert done.stdout == run("plan", tiny("mistral"), "-p", "qlora").stdout
    both = run("plan", tiny("mistral"), "qlora", "-p", "lora")
    assert both.returncode == 2
    assert "two profiles were given, 'qlora' and --profile 'lora'" in both.stderr


def test_the_verdict_first_and_reasons_when_asked(tiny: Tiny, run: Run) -> None:
    plain = run("plan", tiny("mistral"), "qlora").stdout
    lines = plain.split("\n\n")[1].splitlines()
    assert lines[0].startswith("fits ")
    assert len([line for line in lines if not line.startswith(" ")]) <= 6
    assert "instead of" not in plain
    why = run("plan", tiny("mistral"), "qlora", "--why").stdout
    assert why == run("plan", tiny("mistral"), "qlora", "-v").stdout
    assert "instead of flash_attention_3" in why
    assert why == run("plan", "--why", tiny("mistral"), "qlora").stdout  # the word behind --why is the model
    one = run("plan", tiny("mistral"), "qlora", "--why", "attention").stdout
    assert one.startswith("attention  sdpa\n")
    assert "quantization" not in one
    memory = run("plan", tiny("mistral"), "qlora", "--why", "memory").stdout
    assert memory.startswith("memory  ")
    wrong = run("plan", tiny("mistral"), "qlora", "--why", "atention")
    assert wrong.returncode == 4
    assert "did you mean 'attention'?" in wrong.stderr


@pytest.mark.parametrize("more", [(), ("--why",), ("--asked",)])
def test_what_is_piped_neither_wraps_nor_trails(tiny: Tiny, run: Run, more: tuple[str, ...]) -> None:
    out = run("plan", tiny("mistral"), "qlora", *more).stdout
    assert all(line == line.rstrip() for line in out.splitlines())
    if "--why" in more:
        assert "the first of flash_attention_3 > flash_attention_2 > sdpa > eager that can be had\n" in out


def test_colours_that_are_asked_for_leave_lines_whole(tiny: Tiny, run: Run) -> None:
    plain = run("plan", tiny("mistral"), "qlora", "--why").stdout
    for forced in ({"FORCE_COLOR": "1"}, {"TTY_COMPATIBLE": "1"}):
        coloured = run("plan", tiny("mistral"), "qlora", "--why", **forced).stdout
        assert "\x1b[1m" in coloured
        assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == plain
    assert run("plan", tiny("mistral"), "qlora", "--why", FORCE_COLOR="1", NO_COLOR="1").stdout == plain


def test_no_colour_is_printed_where_none_is_wanted(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def said(*arguments: str) -> str:
        return str(CliRunner().invoke(main, arguments, color=True).output)  # as in a terminal

    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[31m" in said("plan", "./nowhere")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in said("plan", "./nowhere")


def test_something_is_said_of_running_without_a_profile(tiny: Tiny, run: Run) -> None:
    out = run("plan", tiny("mistral")).stdout
    assert "running  evaluation mode\n" in out
    assert all(len(line.split(None, 1)) == 2 for line in out.split("\n\n")[1].splitlines())


@pytest.mark.parametrize(
    ("words", "plain"),
    [
        (("--json", "profiles"), ("profiles", "--json")),
        (("--json", "--json", "profiles"), ("profiles", "--json")),
        (("--json", "cache", "list"), ("cache", "list", "--json")),
        (("cache", "--json", "list"), ("cache", "list", "--json")),
        (("--json", "plan", "./nowhere", "--why"), ("plan", "--json", "./nowhere", "--why")),
        (("--json", "plan", "--machine"), ("plan", "--json", "--machine")),
        (("--json", "--version"), ("--version",)),
    ],
)
def test_json_may_stand_before_the_command(words: tuple[str, ...], plain: tuple[str, ...], run: Run) -> None:
    first, second = run(*words), run(*plain)
    assert (first.returncode, first.stderr + first.stdout) == (
        second.returncode,
        second.stderr + second.stdout,
    )
    if "--json" in plain:
        assert first.stdout == second.stdout
        json.loads(first.stdout)


def test_a_lone_slip_with_json_is_json(run: Run) -> None:
    for words in (("--json",), ("--json", "cache"), ("--jsn", "plan", "--json"), ("--json", "pln")):
        done = run(*words)
        assert done.returncode == 2
        assert json.loads(done.stdout)["error"]["exit_code"] == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("plan",), "MODEL is missing"),
        (("load",), "MODEL is missing"),
        (("plan", "--json"), "MODEL is missing"),
        (("plan", "--json=1"), "does not take a value"),
        (("explain",), "CODE is missing"),
        (("explain", "gatd"), "did you mean 'gated'?"),
        (("pln", "x"), "did you mean 'plan'?"),
        (("plan", "x", "--r", "8"), "Did you mean '--lora-r'?"),
        (("plan", "x", "--load_in_4bit"), "Did you mean '--load-in-4bit'?"),
        (("load", "x", "--attn", "sdpa"), "Did you mean '--attn-implementation'?"),
        (("save", "x", "y", "--lora-vison"), "'--lora-vision'"),
        (("demo", "--arch", "mistrl"), "did you mean 'mistral'?"),
        (("check",), "Missing argument"),
    ],
)
def test_a_wrong_command_line_says_what_was_meant(words: tuple[str, ...], said: str, run: Run) -> None:
    done = run(*words)
    assert done.returncode == 2
    assert said in done.stderr
    if any(word.startswith("--json") for word in words):
        assert json.loads(done.stdout)["error"]["exit_code"] == 2


def test_errors_are_json_too(tiny: Tiny, run: Run) -> None:
    done = run("plan", tiny("mistral"), "--json", "--load-in-4bit", "--load-in-8bit")
    assert done.returncode == 3
    error = json.loads(done.stdout)["error"]
    assert (error["type"], error["exit_code"]) == ("PlanError", 3)
    assert [problem["code"] for problem in error["problems"]] == ["4bit-and-8bit"]
    assert "[4bit-and-8bit, from bitsandbytes]" in done.stderr


def test_a_code_is_explained(run: Run) -> None:
    done = run("explain", "[gated]")
    assert done.returncode == 0
    assert done.stdout.splitlines()[:2] == ["gated", explanations()["gated"].what]
    assert "hf auth login" in done.stdout
    assert json.loads(run("explain", "gated", "--json").stdout)["code"] == "gated"
    assert len(run("explain", "--list").stdout.splitlines()) == len(explanations())


PLUGIN = """
from loadkit import Problem, hookimpl

print("imported")

@hookimpl
def loadkit_check_plan(context, plan):
    stage = "dtype-like"
    return [Problem("dtype", "moon", "full-moon", "a message", "a remedy")]
"""


def test_a_code_of_somebody_elses_plugin_is_theirs(run: Run, tmp_path: Path) -> None:
    found = distribution(
        tmp_path, "moon-rules", {"moon_rules.py": PLUGIN}, {"moon": "moon_rules"}, version="2.5"
    )
    with (found / "moon_rules-2.5.dist-info" / "METADATA").open("a") as metadata:
        metadata.write("Project-URL: Documentation, https://moon.example/docs\n")
    done = run("explain", "full-moon", PYTHONPATH=str(found))
    assert done.returncode == 0, done.stderr
    for part in ("'moon'", "moon-rules 2.5", "https://moon.example/docs"):
        assert part in done.stdout
    assert "imported" not in done.stdout
    (each,) = json.loads(run("--json", "explain", "full-moon", PYTHONPATH=str(found)).stdout)
    assert (each["plugin"], each["distribution"], each["version"]) == ("moon", "moon-rules", "2.5")
    for none in ("half-moon", "dtype-like"):  # a slip, and a word that is no code
        assert run("explain", none, PYTHONPATH=str(found)).returncode == 2
    assert run("explain", "full-moon").returncode == 2


def test_every_explanation_has_sentences() -> None:
    for each in explanations().values():
        assert each.ways_out
        for sentence in (each.what, each.why):
            assert sentence.endswith("."), each.code


def test_help_is_in_groups_with_examples(run: Run) -> None:
    text = run("plan", "--help").stdout
    for part in (
        "Options: attention:",
        "Options: quantization:",
        "Examples:",
        "loadkit plan ./my-mistral qlora",
    ):
        assert part in text
    whole = run("--help").stdout
    for part in ("Start here:", "Write plugins:", "Examples:", "_LOADKIT_COMPLETE=bash_source"):
        assert part in whole


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - {"cache"}))  # whose commands are the group
def test_every_command_has_examples_that_parse(name: str) -> None:
    command = main.get_command(click.Context(main), name)
    assert isinstance(command, GroupedCommand)
    assert command.examples
    for example, about in command.examples:
        assert about
        words = shlex.split(example)
        assert words[0] == "loadkit"
        main.make_context("loadkit", words[1:])
        called = main.get_command(click.Context(main), words[1])
        assert called is not None
        called.make_context(words[1], words[2:])


def test_every_command_is_in_one_group() -> None:
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(COMMANDS)


def test_the_demo_is_kept_where_one_says(tiny: Tiny, tmp_path: Path) -> None:
    made, target = tiny("mistral"), tmp_path / "deep" / "mine"
    assert kept(made, target) == target
    assert sorted(p.name for p in target.iterdir()) == sorted(p.name for p in made.iterdir())
    assert [p.name for p in target.parent.iterdir()] == ["mine"]
    assert kept(made, target) == target  # again: it is there
    (target / "config.json").write_text("{}")
    with pytest.raises(LoadkitError, match="something else is there already"):
        kept(made, target)
    assert (target / "config.json").read_text() == "{}"


def test_types_read_as_words() -> None:
    assert kinds_text("bool or mapping or str") == "true or false, a mapping, or a text"
    assert kinds_text("int") == "a whole number"
