"""Subcommands of other distributions: found by entry point, named in the help without being imported, and no
fault of one costs anything else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from distributions import distribution

GOOD = """
import sys
print("imported", file=sys.stderr)
import click

@click.command()
@click.option("--loud", is_flag=True)
def greet(loud):
    "Greet."
    click.echo("HELLO" if loud else "hello")

@click.command()
def trip():
    raise ZeroDivisionError("by nought")

@click.group()
def several():
    pass

several.add_command(greet)
number = 5
"""


def called(folder: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; sys.argv[0] = 'loadkit'; from loadkit.cli import main; main()"
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "200", **env},
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("commands")
    files = {
        "lk_good.py": GOOD,
        "lk_leaves.py": "import os; os._exit(7)\n",
        "lk_breaks.py": "import nothing_of_that_name\n",
    }
    entries = {
        "greet": "lk_good:greet",
        "trip": "lk_good:trip",
        "several": "lk_good:several",
        "number": "lk_good:number",
        "leaves": "lk_leaves:command",
        "breaks": "lk_breaks:command",
        "plan": "lk_good:greet",
        "shared": "lk_good:greet",
    }
    distribution(folder, "lk-commands", files, entries, group="loadkit.commands")
    distribution(folder, "lk-others", {}, {"shared": "lk_good:greet"}, group="loadkit.commands")
    return folder


def test_the_help_names_them_and_imports_none(installed: Path) -> None:
    said = called(installed, "--help")
    assert said.returncode == 0
    assert "imported" not in said.stderr
    section = said.stdout.partition("From plugins:")[2]
    assert "greet" in section
    assert "From lk-commands." in section
    assert "'plan' is a command of loadkit's own" in section
    assert "lk-commands and lk-others both bring a command 'shared'" in section


def test_they_run_with_their_own_options_and_help(installed: Path) -> None:
    assert called(installed, "greet", "--loud").stdout == "HELLO\n"
    assert called(installed, "several", "greet").stdout == "hello\n"
    assert "--loud" in called(installed, "greet", "--help").stdout


def test_loadkits_own_command_stays(installed: Path) -> None:
    assert "Print what would be loaded" in called(installed, "plan", "--help").stdout


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("breaks", "ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("leaves", "os._exit(7), which would end the process"),
        ("number", "isn't a click command, but int"),
        ("shared", "lk-commands and lk-others both bring"),
        ("trip", "'trip' raised ZeroDivisionError: by nought"),
    ],
)
def test_one_that_cant_be_called_is_told_with_its_distribution(
    name: str, words: str, installed: Path
) -> None:
    done = called(installed, name)
    assert (done.returncode, "Traceback" in done.stderr) == (6, False)
    assert "plugin 'lk-commands'" in done.stderr
    assert words in done.stderr


def test_the_environment_chooses_and_a_slip_is_told(installed: Path) -> None:
    for variable in ({"LOADKIT_DISABLE": "lk-commands"}, {"LOADKIT_PLUGINS": "loadkit"}):
        done = called(installed, "greet", **variable)
        assert done.returncode == 6
        assert next(iter(variable)) in done.stderr
    done = called(installed, "gret")
    assert done.returncode == 2
    assert "did you mean 'greet'" in done.stderr


def test_a_word_is_completed_beside_a_broken_one(installed: Path) -> None:
    env = {"_LOADKIT_COMPLETE": "bash_complete", "COMP_WORDS": "loadkit ", "COMP_CWORD": "1"}
    code = "import sys; sys.argv[0] = 'loadkit'; from loadkit.cli import main; main(prog_name='loadkit')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(installed), **env},
    )
    names = {line.partition(",")[2] for line in done.stdout.splitlines()}
    assert {"plan", "greet", "breaks"} <= names
    assert "Traceback" not in done.stderr


def test_the_help_costs_no_import_where_nobody_brings_one() -> None:
    code = "import sys; from loadkit.cli.main import main; main(['--help'], standalone_mode=False); "
    check = "print('METADATA', 'importlib.metadata' in sys.modules, 'pluggy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code + check], capture_output=True, text=True, check=True)
    assert "METADATA False False" in done.stdout
