"""What importing and planning cost: never torch, transformers, bitsandbytes, peft, accelerate or numba."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

import loadkit
import loadkit.plugins

HEAVY = ("accelerate", "bitsandbytes", "numba", "peft", "torch", "transformers")
ROOT = Path(loadkit.__file__).parent

FORKS = """
import json, os, sys, traceback

def tell(code, out):
    sys.stdout = open(os.devnull, "w")
    try:
        exec(code, {})
        found = {"imported": sorted(heavy & set(sys.modules))}
    except BaseException:
        found = {"error": traceback.format_exc()}
    os.write(out, json.dumps(found).encode())
    os._exit(0)

def asked(code):
    read, write = os.pipe()
    if not os.fork():
        tell(code, write)
    os.close(write)
    with open(read, "rb") as said:
        return json.loads(said.read())

before, codes, heavy = json.loads(sys.argv[1])
heavy = set(heavy)
exec(before, {})
print(json.dumps({code: asked(code) for code in codes}))
"""
"""Runs each code in a process of its own, forked off one that has run nothing but `before`: what of the heavy
it imports."""


def imported(before: str, codes: list[str]) -> dict[str, dict[str, object]]:
    """Code to what it imports in a process that has run `before`."""
    done = subprocess.run(
        [sys.executable, "-c", FORKS, json.dumps([before, codes, HEAVY])],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, object]] = json.loads(done.stdout.splitlines()[-1])
    return found


LIGHT = [
    "import loadkit",
    "import loadkit; [getattr(loadkit, name) for name in loadkit.__all__]",
    "import loadkit; print(loadkit.PluginManager().plugins)",
    "import loadkit; print(loadkit.plan(FOLDER, 'qlora'))",
    "from loadkit.cli import main; main(['plan', FOLDER, '-p', 'qlora', '--json'], standalone_mode=False)",
    "from loadkit.cli import main; main(['plugins'], standalone_mode=False)",
    "import loadkit.testing.checkpoints, loadkit.cli.demo_run",
]


def test_heavy_libraries_are_left_out(tiny: Callable[..., Path]) -> None:
    codes = [code.replace("FOLDER", repr(str(tiny("mistral")))) for code in LIGHT]
    found = imported("", [*codes, "import torch"])
    assert found.pop("import torch") == {"imported": ["torch"]}  # the guard sees what it is for
    assert found == {code: {"imported": []} for code in codes}


def test_loading_imports_what_a_decision_uses(tiny: Callable[..., Path], kernels: Path) -> None:
    """transformers 5.23 imports accelerate itself, whatever it loads, and peft 0.21 imports bitsandbytes
    where it is installed. numba is for quantizing on a CPU."""
    always = ["accelerate", "torch", "transformers"]
    uses = {
        "inference": [],
        "full": [],
        "lora": ["bitsandbytes", "peft"],
        "qlora": ["bitsandbytes", "numba", "peft"],
        "inference-4bit": ["bitsandbytes", "numba"],
    }
    code = {p: f"import loadkit; loadkit.load({str(tiny('mistral'))!r}, {p!r})" for p in uses}
    before = "import accelerate, torch, transformers.models.mistral.modeling_mistral"
    found = imported(before, list(code.values()))
    assert {p: found[code[p]] for p in uses} == {
        profile: {"imported": sorted([*always, *more])} for profile, more in uses.items()
    }


PUBLIC = """
    Accelerator Adapter Adapters Architecture Asked AuditError Change Checkpoint Claim Context
    Decision Difference Experimental Finding Finish Finished LoadError Loaded Loading LoadkitError LoadkitWarning
    Machine Manifest Measurements Memory Merged ModelClass Opened Option Overruled Packed PassedOver
    Placement Plan PlanError PluginError PluginInfo PluginManager PluginWarning Preparation Problem
    Processing Profile Quantization RankError RankMemory Reading Recipe ReplayError ReplayWarning Report
    Request Severity StoredFormat Strength Support Supported Tokens Topology Unit Unsupported Vocabulary
    Weight differences hookimpl load load_processing_class merge plan read_profile read_profiles read_recipe
"""
"""What users and plugin authors need."""

FOR_PLUGINS = """
    AdapterFacts Beside ConfigFacts Contradiction Default Dialect Entries Entry FLOATS Family File
    FileProof HEADED_TASKS ITEM_SIZES InferenceMode Key Keywords Library LoadingAid ModelFacts ModuleFacts
    NamedAccelerator Optimizer ProcessingFacts Record SHORT_DTYPES Section Shortcut Source SourceError
    SourceFile Stored Template
    TensorHeader Towers base_of canonical_dtype checksum checksums configs did_you_mean file_checksums
    fits folder_of input_embeddings is_packed is_projector nearest_name output_embeddings pause_gc plain
    read_dialect running_checksum size some_of span template_fault tokenizer_of tower_keys towers
"""
"""What plugins need beyond it."""

MOVED = """
    AdapterFacts Beside ConfigFacts Entries Entry Family File FileProof InferenceMode Library LoadingAid
    ModelFacts ModuleFacts ProcessingFacts Record Shortcut Stored Template TensorHeader checksum
    checksums file_checksums size span
"""
"""Names that were public in `loadkit`, and are in `loadkit.plugins` now."""

RENAMED = {"collector_rests": "pause_gc", "nearest": "did_you_mean"}
"""Those that are called otherwise there."""


@pytest.mark.parametrize(
    ("module", "names"),
    [(loadkit, PUBLIC), (loadkit.plugins, FOR_PLUGINS)],
    ids=["loadkit", "loadkit.plugins"],
)
def test_public_names_are_pinned(module: ModuleType, names: str) -> None:
    assert module.__all__ == names.split()
    assert module.__all__ == sorted(module.__all__)
    for name in module.__all__:
        assert getattr(module, name) is not None


def test_names_beside_them_are_none() -> None:
    assert set(dir(loadkit)) == set(loadkit.__all__)
    assert not set(loadkit.__all__) & set(loadkit.plugins.__all__)
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        loadkit.laod  # type: ignore[attr-defined]
    assert callable(loadkit.plan)
    assert callable(loadkit.load)


@pytest.mark.parametrize("name", [*MOVED.split(), *RENAMED])
def test_names_that_moved_work_and_warn(name: str) -> None:
    now = RENAMED.get(name, name)
    with pytest.warns(DeprecationWarning, match="the old name works until version 2") as told:
        found = getattr(loadkit, name)
    assert found is getattr(loadkit.plugins, now)
    assert [str(warning.message) for warning in told] == [
        f"loadkit.{name} is loadkit.plugins.{now} now; the old name works until version 2"
    ]
    assert told[0].filename == __file__  # whoever uses the name is told where


def test_the_core_names_no_plugin() -> None:
    for path in ROOT.rglob("*.py"):
        assert not re.search(
            r"^\s*(from|import) loadkit_plugins", path.read_text(encoding="utf-8"), re.MULTILINE
        ), path


KNOWN_BY_NAME = {
    "cli/doctor_report.py": "versions of the libraries that loadkit itself requires, and what is known of them",
    "cli/known_issues.py": "versions that are known not to work together, of any libraries",
    "compat": "the trainers' own arguments, by their names",
    "facts/checkpoint/checkpoint.py": "names of tensors that only quantized weights have",
    "loading/known_noise.py": "lines that libraries print and that mislead, by the loggers that print them",
    "facts/machine/unusable.py": "packages that other libraries import unasked, which may be broken",
    "loading/out_of_memory.py": "a hint: the option that most people have",
    "manifest/manifest.py": "versions of loadkit's own dependencies",
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
