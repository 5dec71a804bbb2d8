"""What a shell completes, asked as a shell asks."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from forks import Forks

COMMAND = "import sys; sys.argv[0] = 'loadkit'; from loadkit.cli import main; main()"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "my-mistral").mkdir()
    (tmp_path / "my-model.gguf").touch()
    (tmp_path / "mine.toml").touch()
    (tmp_path / "my-notes.txt").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("loadkit pl", ["plan", "plugins"]),
        ("loadkit plan ./my", ["./my", "./my-model.gguf"]),  # the first: folders that begin so, by the shell
        ("loadkit merge my-mo", ["my-mo", "my-model.gguf"]),
        ("loadkit plan ./my-mistral ql", ["qlora", "qlora-8bit"]),
        ("loadkit load ./my-mistral mi", ["mine.toml"]),
        ("loadkit save x --profile inf", ["inference", "inference-4bit", "inference-8bit"]),
        ("loadkit --json plan x --profile full", ["full"]),
        ("loadkit demo -p lo", ["lora"]),
        ("loadkit plan x --why mem", ["memory"]),
        ("loadkit plan x --machine 8xH1", ["8xH100-80GB"]),
        ("loadkit plan x --machine H1", ["H100-80GB"]),
        ("loadkit plan x --engine fs", ["fsdp", "fsdp2"]),
        ("loadkit explain does-n", ["does-not-fit"]),
        ("loadkit check bits", ["bitsandbytes"]),
        ("loadkit plan ./nowhere/at/all/mi", ["./nowhere/at/all/mi"]),
    ],
)
def test_words_are_completed(line: str, offered: list[str], folder: Path, forks: Forks) -> None:
    environ = {
        "_LOADKIT_COMPLETE": "bash_complete",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(shlex.split(line)) - 1),
    }
    done = forks.run(COMMAND, folder=folder, environ=environ)
    assert done.returncode == 0, done.stderr
    assert [each.partition(",")[2] for each in done.stdout.splitlines()] == offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_gets_its_script(shell: str, forks: Forks) -> None:
    done = forks.run(COMMAND, environ={"_LOADKIT_COMPLETE": f"{shell}_source"})
    assert done.returncode == 0, done.stderr
    assert "_LOADKIT_COMPLETE" in done.stdout
