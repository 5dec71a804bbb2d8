"""Attention that a distribution registers with transformers: found by its entry point, attributed in the
plan, imported for the load alone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from distributions import distribution

import loadkit
from loadkit import LoadError, PlanError

Tiny = Callable[..., Path]

REGISTERS = """
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

AttentionInterface.register("{name}", sdpa_attention_forward)
AttentionMaskInterface.register("{name}", sdpa_mask)
"""
CODE = """
import sys, loadkit
plan = loadkit.plan(sys.argv[1], attn_implementation=sys.argv[2])
assert not {"torch", "lk_registers"} & set(sys.modules)
print(plan.why("attention").because)
"""


def run(folder: Path, tiny: Tiny) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", CODE, str(tiny("mistral")), "mine"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )


def brings(folder: Path, text: str, entries: dict[str, str], name: str = "lk-registers") -> Path:
    return distribution(folder, name, {"lk_registers.py": text}, entries, group="loadkit.attention")


def test_it_is_named_in_the_plan_and_runs(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = brings(tmp_path, REGISTERS.format(name="mine"), {"mine": "lk_registers"})
    done = run(folder, tiny)
    assert done.returncode == 0, done.stderr
    assert "registered by lk_registers (of lk-registers 1.0)" in done.stdout
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "lk_registers", raising=False)
    loaded = loadkit.load(tiny("mistral"), attn_implementation="mine")
    assert loaded.model.config._attn_implementation == "mine"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import sys; sys.exit(0)\n", "importing that raises"),
        ("import nothing_of_that_name\n", "ModuleNotFoundError"),
        (REGISTERS.format(name="another"), "transformers doesn't know that name"),
    ],
)
def test_one_that_registers_nothing_is_told(
    text: str, words: str, tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(brings(tmp_path, text, {"absent": "lk_registers"})))
    monkeypatch.delitem(sys.modules, "lk_registers", raising=False)
    with pytest.raises(LoadError, match=rf"attention 'absent' is registered by lk_registers .*{words}"):
        loadkit.load(tiny("mistral"), attn_implementation="absent")


def test_names_stay_their_owners_and_slips_are_told(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = brings(tmp_path, "", {"mine": "lk_registers", "eager": "lk_registers"})
    distribution(folder, "lk-others", {}, {"mine": "lk_registers"}, group="loadkit.attention")
    monkeypatch.syspath_prepend(str(folder))
    for name, words in (
        ("mine", "several distributions register: lk-others 1.0 and lk-registers 1.0"),
        ("minee", "did you mean 'mine'"),
    ):
        with pytest.raises(PlanError, match=words):
            loadkit.plan(tiny("mistral"), attn_implementation=name)
    plan = loadkit.plan(tiny("mistral"), attn_implementation="eager")
    assert "registered by" not in plan.why("attention").because
