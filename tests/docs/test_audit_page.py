"""What the page on the audit shows is what is printed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from forks import Forks

import loadkit

PAGE = Path(__file__).parent.parent.parent / "docs" / "explanation" / "audit.md"

COMMAND = "from loadkit.cli.main import main\nmain(prog_name='loadkit')"

OPTIONS = ["--profile", "lora", "--lora-r", "8", "--gradient-checkpointing-kwargs", '{"use_reentrant": true}']


def squashed(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def test_the_page_shows_what_is_printed(tiny: Callable[..., Path], forks: Forks) -> None:
    text = PAGE.read_text(encoding="utf-8")
    wrong, table = (squashed(block) for block in re.findall(r"```text\n(.*?)```", text, re.DOTALL))
    assert " ".join(OPTIONS[:4]) in text
    assert OPTIONS[-1] in text
    done = forks.run(COMMAND, "load", tiny("mistral"), *OPTIONS, "--asked", environ={"COLUMNS": "160"})
    assert done.returncode == 0, done.stderr
    assert table in squashed(done.stdout)

    class Doubling:
        @loadkit.hookimpl
        def loadkit_audit_model(self, model: object) -> list[loadkit.Finding]:
            for module in model.modules():  # type: ignore[attr-defined]
                if hasattr(module, "lora_A"):
                    module.r["default"] = 16
            return []

    manager = loadkit.PluginManager(environ={})
    manager.register(Doubling(), "doubling")
    with pytest.raises(loadkit.AuditError) as caught:
        loadkit.load(tiny("mistral"), "lora", lora_r=8, plugin_manager=manager)
    assert wrong in squashed(str(caught.value))
