"""bitsandbytes isn't there, or fails when it is imported: what needs none plans and loads, the rest says why.

The parent has none: its path leads to every package but that one. Each child's is broken in its own way.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import loadkit
from loadkit.facts.machine import unusable

ROOT = Path(loadkit.__file__).parent.parent
SITES = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
WITHOUT = "bitsandbytes"

TRIED = """
import json, os, sys

without, folder, cases = json.loads(sys.argv[1])
sys.path[:0] = without
import accelerate, torch, transformers.models.mistral.modeling_mistral

def outcome(asked):
    try:
        return {"done": asked()}
    except Exception as error:
        return {"error": type(error).__name__, "said": str(error)}

def tried(case, ways):
    sys.path[:0] = ways
    import loadkit
    if case == "forbidden":
        class Forbids:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] == "bitsandbytes":
                    raise ImportError("not on this machine")
        sys.meta_path.insert(0, Forbids())
    def adapter():
        model = loadkit.load(folder, "lora").model
        return [type(model).__name__, str(next(model.parameters()).dtype)]
    return {
        "inference": outcome(lambda: type(loadkit.load(folder, "inference").model).__name__),
        "plan of lora": outcome(lambda: loadkit.plan(folder, "lora").dtype),
        "plan of qlora": outcome(lambda: loadkit.plan(folder, "qlora").dtype),
        "qlora": outcome(lambda: type(loadkit.load(folder, "qlora").model).__name__),
        "plan again": outcome(lambda: loadkit.plan(folder, "qlora").dtype),
        "lora": outcome(adapter),
    }

said = {}
for case, ways in cases.items():
    read, write = os.pipe()
    if not os.fork():
        sys.stdout = open(os.devnull, "w")
        os.write(write, json.dumps(tried(case, ways)).encode())
        os._exit(0)
    os.close(write)
    with open(read, "rb") as told:
        said[case] = json.loads(told.read() or "null")
print(json.dumps(said))
"""

BROKEN = {
    "system library": "import ctypes\nctypes.CDLL('libcudart.so.99')",  # OSError
    "another torch": "from bitsandbytes import nn\nraise RuntimeError('built for another torch')",
    "half a package": "import bitsandbytes.functional",  # ModuleNotFoundError
    "exits": "raise SystemExit('no licence')",
}
FAULTS = {
    "system library": "OSError: libcudart.so.99",
    "another torch": "RuntimeError: built for another torch",
    "half a package": "ModuleNotFoundError: No module named 'bitsandbytes.functional'",
    "exits": "SystemExit: no licence",
    "forbidden": "ImportError: not on this machine",
    "gone": "there is no module of the name bitsandbytes",
}
SEEN_BEFORE = ("forbidden", "gone")
"""What planning sees from outside."""


@pytest.fixture(scope="module")
def said(tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Case to what each request came to."""
    home = tmp_path_factory.mktemp("packages")
    links = home / "links"
    links.mkdir()
    for site in SITES:
        for entry in Path(site).iterdir():
            if WITHOUT not in entry.name and not (links / entry.name).exists():
                (links / entry.name).symlink_to(entry)
    cases: dict[str, list[str]] = {"absent": []}
    for case in FAULTS:
        info = home / case / f"{WITHOUT}-9.9.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {WITHOUT}\nVersion: 9.9\n")
        if case != "gone":
            (home / case / WITHOUT).mkdir()
            (home / case / WITHOUT / "__init__.py").write_text(BROKEN.get(case, ""))
            (home / case / WITHOUT / "nn.py").touch()
        cases[case] = [str(home / case)]
    ways = [str(ROOT), str(ROOT / "plugins"), str(links)]
    done = subprocess.run(
        [sys.executable, "-S", "-c", TRIED, json.dumps([ways, str(tiny("mistral")), cases])],
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("case", ["absent", *FAULTS])
def test_what_needs_no_bitsandbytes_loads(said: dict[str, Any], case: str) -> None:
    assert said[case]["inference"] == {"done": "MistralForCausalLM"}
    assert said[case]["plan of lora"] == {"done": "bfloat16"}
    assert said[case]["lora"] == {"done": ["PeftModelForCausalLM", "torch.bfloat16"]}


@pytest.mark.parametrize("case", FAULTS)
def test_what_needs_it_says_why_it_cant_be_imported(said: dict[str, Any], case: str) -> None:
    before = said[case]["plan of qlora"]
    assert ("error" in before) == (case in SEEN_BEFORE)
    for request in ("qlora", "plan again", *(["plan of qlora"] if case in SEEN_BEFORE else [])):
        found = said[case][request]
        assert found["error"] == "PlanError"
        assert "[package-unusable, from loadkit]" in found["said"]
        assert f"bitsandbytes 9.9 is installed but can't be imported here: {FAULTS[case]}" in found["said"]
        assert "profile lora" in found["said"]


def test_where_it_isnt_installed_the_plan_says_so(said: dict[str, Any]) -> None:
    for request in ("qlora", "plan of qlora", "plan again"):
        assert said["absent"][request]["error"] == "PlanError"
        assert "[no-bitsandbytes, from bitsandbytes]" in said["absent"][request]["said"]


def test_what_was_imported_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unusable, "_failed", {})
    assert unusable.failed_import("json") == ""
    assert sys.modules["json"] is json
    assert unusable.unusable(["json", "nothing-of-this-name"]) == {
        "nothing-of-this-name": "there is no module of the name nothing_of_this_name"
    }
