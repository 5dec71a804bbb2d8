"""What importing and planning cost: never torch, transformers, bitsandbytes, peft or accelerate."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import loadkit

HEAVY = "{'torch', 'transformers', 'bitsandbytes', 'peft', 'accelerate'}"
ROOT = Path(loadkit.__file__).parent


def left_out(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(sorted({HEAVY} & set(sys.modules)))"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    "code",
    [
        "import loadkit",
        "import loadkit; [getattr(loadkit, name) for name in loadkit.__all__]",
        "import loadkit; print(loadkit.PluginManager().plugins)",
        "import loadkit; print(loadkit.plan(FOLDER, 'qlora'))",
        "from loadkit.cli import main; main(['plan', FOLDER, '-p', 'qlora', '--json'], standalone_mode=False)",
        "from loadkit.cli import main; main(['plugins'], standalone_mode=False)",
        "import loadkit.testing.checkpoints, loadkit.demo",
    ],
)
def test_heavy_libraries_are_left_out(code: str, tiny) -> None:
    assert left_out(code.replace("FOLDER", repr(str(tiny("mistral"))))) == "[]"


def test_the_guard_sees_what_it_is_for() -> None:
    assert left_out("import torch") == "['torch']"


def test_public_names_are_pinned() -> None:
    assert loadkit.__all__ == sorted(loadkit.__all__)
    for name in loadkit.__all__:
        assert getattr(loadkit, name) is not None
    assert set(dir(loadkit)) == set(loadkit.__all__)
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        loadkit.laod  # type: ignore[attr-defined]
    assert callable(loadkit.plan)
    assert callable(loadkit.load)


def test_the_core_names_no_plugin() -> None:
    for path in ROOT.rglob("*.py"):
        assert not re.search(
            r"^\s*(from|import) loadkit_plugins", path.read_text(encoding="utf-8"), re.MULTILINE
        ), path
