"""The whole scripts of docs/examples train, each from a folder, and leave an adapter that holds what was
trained."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open

EXAMPLES = sorted((Path(__file__).parent.parent.parent / "docs" / "examples").glob("*.py"))
LONGEST = 60
"""Lines: what is longer isn't read."""


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.stem)
def test_a_script_is_short_and_listed(script: Path) -> None:
    assert len(script.read_text(encoding="utf-8").splitlines()) < LONGEST
    page = script.parent.parent / "how-to" / "examples.md"
    assert f"](../examples/{script.name})" in page.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.stem)
def test_a_script_trains(script: Path, tiny: Callable[..., Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, str(script), str(tiny("mistral")), str(out), "2"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with safe_open(out / "adapter_model.safetensors", framework="pt") as file:
        names = list(file.keys())
        moved = [name for name in names if "lora_B" in name and file.get_tensor(name).any()]
    assert moved  # B starts at zero
    assert any("score" in name for name in names) == (script.stem == "reward")
    assert (out / "loadkit-manifest.json").is_file() == (script.stem == "sft")
