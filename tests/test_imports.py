"""What importing and planning cost: never torch, transformers, bitsandbytes, peft, accelerate or numba."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import loadkit

HEAVY = "{'torch', 'transformers', 'bitsandbytes', 'peft', 'accelerate', 'numba'}"
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
        "import loadkit.testing.checkpoints, loadkit.cli.demo_run",
    ],
)
def test_heavy_libraries_are_left_out(code: str, tiny) -> None:
    assert left_out(code.replace("FOLDER", repr(str(tiny("mistral"))))) == "[]"


@pytest.mark.parametrize(
    ("profile", "imported"),
    [("inference", set()), ("full", set()), ("lora", {"bitsandbytes", "peft"}), ("qlora", {"bitsandbytes", "numba", "peft"}), ("inference-4bit", {"bitsandbytes", "numba"})],
)  # fmt: skip
def test_loading_imports_what_a_decision_uses(profile: str, imported: set[str], tiny) -> None:
    """transformers 5.23 imports accelerate itself, whatever it loads, and peft 0.21 imports bitsandbytes where it is installed. numba is for quantizing on a CPU."""
    code = f"import loadkit; loadkit.load({str(tiny('mistral'))!r}, {profile!r})"
    found = set(re.findall(r"\w+", left_out(code)))
    assert found - {"torch", "transformers", "accelerate"} == imported


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


KNOWN_BY_NAME = {
    "cli/doctor_report.py": "versions of the libraries that loadkit itself requires, and what is known of them",
    "cli/known_issues.py": "versions that are known not to work together, of any libraries",
    "compat": "the trainers' own arguments, by their names",
    "manifest/manifest.py": "versions of loadkit's own dependencies",
    "planning/memory/optimizers.py": "optimizers, by the trainers' names for them",
    "planning/memory/fit_check.py": "a hint: the option that most people have",
    "request/options.py": "another spelling of skip_modules",
    "request/recipes": "the recipes' own keys, by their names",
    "schema/value_text.py": "prefixes that a plan's reader needn't read",
    "schema/stages.py": "older keyword arguments of from_pretrained itself",
    "schema/values.py": "an example in a docstring",
    "testing": "makes checkpoints that plain transformers quantized",
}
"""Files and folders where a quantizer's names may stand in the core, and why."""


def test_the_core_knows_no_quantizer() -> None:
    names = re.compile(
        r"bitsandbytes|bnb|quant_state|\bSCB\b|Params4bit|llm_int8|load_in_[48]bit|Linear4bit|torchao", re.I
    )
    found = {
        path.relative_to(ROOT).as_posix()
        for path in ROOT.rglob("*.py")
        if names.search(path.read_text(encoding="utf-8"))
    }
    homes = {
        path: next((home for home in KNOWN_BY_NAME if f"{path}/".startswith(f"{home}/")), None)
        for path in found
    }
    assert [path for path, home in homes.items() if home is None] == []
    assert set(homes.values()) == set(KNOWN_BY_NAME)
