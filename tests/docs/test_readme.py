"""The README, in order and from a clean folder: its commands print what it shows, and its Python runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from forks import Forks

README = (Path(__file__).parent.parent.parent / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```", re.DOTALL | re.MULTILINE)
COMMAND = "from loadkit.cli.main import main\nmain(prog_name='loadkit')"
INSTALLS = "pip install"
"""What .ci/run does, in fresh environments."""

OF_A_MACHINE = (
    (r"\d+ cores", "N cores"),
    (r"[\d.]+ GiB", "N GiB"),
    (r"\([\d.]+%\)", "(N%)"),
    (r"under 0\.01%", "N%"),
    (r"\d+ (?:minute|hour|day)s? ago|less than a minute ago", "N ago"),
    (r"\([\da-f]{12}\)", "(key)"),
    (r"numba [\d.]+", "numba N"),
)
"""What differs from machine to machine, and from minute to minute."""


def of_any_machine(text: str) -> str:
    for pattern, instead in OF_A_MACHINE:
        text = re.sub(pattern, instead, text)
    return text


@pytest.mark.slow
def test_commands_print_what_the_readme_shows(tmp_path: Path, forks: Forks) -> None:
    environ = {"LOADKIT_CACHE": str(tmp_path / "cache"), "LOADKIT_QUANTIZED_CACHE": "1"}  # a user's
    shown = 0
    for language, _, text in BLOCK.findall(README):
        if language == "sh" and INSTALLS not in text:
            for line in text.splitlines():
                done = forks.run(COMMAND, *shlex.split(line)[1:], folder=tmp_path, environ=environ)
                assert done.returncode == 0, done.stderr
        elif language == "console":
            for command, printed in re.findall(r"^\$ loadkit (.*)\n((?:(?!\$ ).*\n)*)", text, re.MULTILINE):
                done = forks.run(COMMAND, *shlex.split(command), folder=tmp_path, environ=environ)
                said = done.stdout + done.stderr
                assert of_any_machine(said) == of_any_machine(printed)
                shown += 1
    assert shown > 2


# trl 1.16 sets gradient_checkpointing, which transformers 5.23 calls activation_checkpointing.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing.*is deprecated:FutureWarning")
def test_its_python_runs_in_order(tmp_path: Path, forks: Forks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    forks.run(COMMAND, "demo", "--keep", "./my-mistral", "--steps", "1", folder=tmp_path)
    namespace: dict[str, object] = {}
    ran = 0
    for language, title, text in BLOCK.findall(README):
        if title:
            (tmp_path / title).write_text(text, encoding="utf-8")
        elif language == "python":
            exec(compile(text, "README.md", "exec"), namespace)
            ran += 1
    assert ran > 5
