"""The whole scripts and the notebook of docs/examples train, each from a folder, and leave an adapter that
holds what was trained."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open

FOLDER = Path(__file__).parent.parent.parent / "docs" / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
PICTURES = ("vision_language",)
"""Scripts whose model takes images."""

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
LONGEST = 60
"""Lines: what is longer isn't read."""


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.stem)
def test_a_script_is_short_and_listed(script: Path) -> None:
    assert len(script.read_text(encoding="utf-8").splitlines()) < LONGEST
    page = script.parent.parent / "how-to" / "examples.md"
    assert f"](../examples/{script.name})" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_a_notebook_is_listed_and_holds_no_output(notebook: Path) -> None:
    page = FOLDER.parent / "how-to" / "examples.md"
    assert f"](../examples/{notebook.name})" in page.read_text(encoding="utf-8")
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None


@pytest.mark.slow
@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.stem)
def test_a_script_trains(script: Path, tiny: Callable[..., Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    launcher = TORCHRUN if script.stem == "torchrun" else ()
    model = tiny("gemma3" if script.stem in PICTURES else "mistral")
    done = subprocess.run(
        [sys.executable, *launcher, str(script), str(model), str(out), "2"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with safe_open(out / "adapter_model.safetensors", framework="pt") as file:
        names = list(file.keys())
        moved = [name for name in names if "lora_B" in name and file.get_tensor(name).any()]
    assert moved  # B starts at zero
    assert any("score" in name for name in names) == (script.stem == "reward")
    assert not any("vision" in name for name in names)
    assert (out / "loadkit-manifest.json").is_file() == (script.stem in ("sft", "torchrun"))


@pytest.mark.slow
def test_the_notebook_shows_plan_memory_report_and_trains(tiny: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "my-mistral").symlink_to(tiny("mistral"))
    (notebook,) = NOTEBOOKS
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("notebook.py")), str(notebook)],
        cwd=tmp_path, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    tables = [cell["html"] for cell in shown if "html" in cell]
    plan, why, memory, cluster, report, again = tables
    assert "MistralForCausalLM" in plan
    assert "sdpa" in why
    assert "MiB" in memory or "KiB" in memory
    assert cluster != memory
    for proved in (report, again):
        assert "what was planned is what was loaded" in proved
    printed = "".join(cell["text"] for cell in shown)
    assert "bfloat16" in printed  # what dtype="bfloat" means
    assert "lora_r" in printed
    first, last = re.findall(r"the loss went from ([\d.]+) to ([\d.]+)", printed)[0]
    assert float(last) < float(first)
    with safe_open(tmp_path / "my-adapter" / "adapter_model.safetensors", framework="pt") as file:
        assert any("lora_B" in name and file.get_tensor(name).any() for name in file.keys())  # noqa: SIM118
    assert (tmp_path / "my-adapter" / "loadkit-manifest.json").is_file()
