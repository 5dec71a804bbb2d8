"""Both distributions under plugins/, installed from their folders into a virtual environment, seen from the
outside."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
NAMES = {"smollm3": "loadkit-smollm3", "torchao": "loadkit-torchao"}
LOADED = {
    # plugin to: checkpoint, what is given on the command line
    "smollm3": ("smollm3", ["--smollm3-implementation", "plugin"]),
    "torchao": ("mistral", ["--profile", "inference-int8-torchao"]),
}
COMMAND_LINE = "from loadkit.cli import main; main()"

NEXT = "\n--- next ---\n"
ONE_AFTER_THE_OTHER = (
    "import json, sys; from loadkit.cli import main\n"
    "for number, call in enumerate(json.loads(sys.argv[1])):\n"
    f"    print({NEXT!r} if number else '', end='')\n"
    "    main(call, standalone_mode=False)\n"
)

TORCHAO = importlib.util.find_spec("torchao") is not None
needs_torchao = pytest.mark.skipif(not TORCHAO, reason="torchao isn't installed")
BOTH = ["smollm3", pytest.param("torchao", marks=needs_torchao)]

Run = Callable[..., str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs Python in an environment of its own: the packages of this one, and the two distributions, built
    and installed."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, with_pip=False, symlinks=True)
    python = home / ("Scripts" if os.name == "nt" else "bin") / "python"
    site = Path(asked(python, "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    # Not the folders that pytest puts on the path: the distributions must be found where they are installed,
    # or not at all.
    sources = [str(ROOT / "tests"), *(str(ROOT / "plugins" / name) for name in NAMES.values())]
    (site / "these.pth").write_text("\n".join(p for p in sys.path if p and p not in sources))
    folders = [home / name for name in NAMES.values()]
    for folder in folders:  # a copy, so that building leaves nothing behind
        shutil.copytree(
            ROOT / "plugins" / folder.name, folder, ignore=shutil.ignore_patterns("tests", "__pycache__")
        )
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--disable-pip-version-check"]
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", *offline]
    done = subprocess.run([*pip, *map(str, folders)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

    def running(*arguments: object, code: int = 0) -> str:
        return asked(python, *arguments, status=code)

    return running


def asked(python: Path, code: str, *arguments: object, status: int = 0) -> str:
    done = subprocess.run(
        [str(python), *code_of(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env={
            **{k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
            "HF_HUB_OFFLINE": "1",
            "COLUMNS": "120",
        },
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


def code_of(code: str) -> list[str]:
    return ["-c", code] if code.startswith(("import", "from")) else ["-m", *code.split()]


def test_they_are_installed_and_announced(run: Run) -> None:
    said = run(
        "import json; from importlib import metadata, util; "
        "print(json.dumps({e.name: [e.dist.name, e.value, util.find_spec(e.module).origin] "
        "for e in metadata.entry_points(group='loadkit') if e.dist.name != 'loadkit'}))"
    )
    found = json.loads(said)
    assert {name: (dist, value) for name, (dist, value, _) in found.items()} == {
        "smollm3": ("loadkit-smollm3", "loadkit_smollm3.plugin"),
        "torchao": ("loadkit-torchao", "loadkit_torchao.plugin"),
    }
    assert all("site-packages" in origin and str(ROOT) not in origin for _, _, origin in found.values())


def test_loadkit_plugins_lists_them(run: Run) -> None:
    listed = {p["name"]: p for p in json.loads(run(COMMAND_LINE, "plugins", "--json"))}
    for name, distribution in NAMES.items():
        about = listed[name]
        assert (about["state"], about["distribution"], about["version"]) == (
            "active",
            distribution,
            "1.0.0.dev0",
        )
    assert "loadkit_architectures" in listed["smollm3"]["hooks"]
    assert "loadkit_build_quantization_config" in listed["torchao"]["hooks"]
    only = {
        p["name"]
        for p in json.loads(run(COMMAND_LINE, "plugins", "--json", "--hook", "loadkit_architectures"))
    }
    assert only == {"smollm3"}
    assert "inference-int8-torchao" in run(COMMAND_LINE, "profiles")


@pytest.fixture(scope="module")
def loaded(run: Run, tiny: Callable[[str], Path]) -> dict[str, str]:
    """Plugin to what `loadkit load --json` prints; one process imports the libraries for all."""
    names = [name for name in LOADED if name != "torchao" or TORCHAO]
    calls = [["load", str(tiny(LOADED[n][0])), "--json", *LOADED[n][1]] for n in names]
    said = run(ONE_AFTER_THE_OTHER, json.dumps(calls)).split(NEXT)
    return dict(zip(names, said, strict=True))


@pytest.mark.parametrize("name", BOTH)
def test_the_command_line_loads_with_them(loaded: dict[str, str], name: str) -> None:
    text = json.dumps(json.loads(loaded[name]))
    assert NAMES[name] in text
    assert ("SmolLM3ForCausalLM" if name == "smollm3" else "int8_weight_only") in text


@pytest.mark.slow
@pytest.mark.parametrize("name", BOTH)
def test_they_conform_where_they_are_installed(run: Run, name: str) -> None:
    """By the distribution's name, in the process of its own that `loadkit check` starts, loading what they
    are for."""
    own = LOADED[name][1] if name == "torchao" else ["--option", "smollm3_implementation=plugin"]
    options = ["--checkpoint", LOADED[name][0], *own]
    results: list[dict[str, Any]] = json.loads(run(COMMAND_LINE, "check", NAMES[name], "--json", *options))
    verdicts = {r["code"]: r["verdict"] for r in results}
    assert set(verdicts.values()) <= {"passed", "skipped"}
    assert {"LK101", "LK102", "LK103", "LK104", "LK501", "LK502", "LK504"} <= {
        code for code, verdict in verdicts.items() if verdict == "passed"
    }


RANKS = """
import json, os, sys
import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # see how-to/many-processes.md: imported later it would keep the group
import loadkit

dist.init_process_group("gloo")
said = {"rank": dist.get_rank()}
for name, (folder, profile, options) in json.loads(sys.argv[1]).items():
    loaded = loadkit.load(folder, profile, **options)
    with torch.no_grad():
        logits = loaded.model.eval()(torch.arange(10, 30).view(2, 10)).logits.float()
    every = [torch.empty_like(logits) for _ in range(dist.get_world_size())]
    dist.all_gather(every, logits)
    said[name] = {
        "from": loaded.plan.plugins[name],
        "decided": [d.stage for d in loaded.plan.decisions if d.plugin == name],
        "equal": all(torch.equal(other, logits) for other in every),
    }
everything = [None] * dist.get_world_size()
dist.all_gather_object(everything, said)
if dist.get_rank() == 0:
    print("SAID", json.dumps(everything))
dist.destroy_process_group()
if sys.platform == "linux":
    threads = [open(f"/proc/self/task/{t}/comm").read() for t in os.listdir("/proc/self/task")]
    assert not any("gloo" in name for name in threads), threads
"""


@needs_torchao
def test_they_decide_in_every_process_of_torchrun(
    run: Run, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    """Nothing is registered in the script: each process finds the plugins by their entry points."""
    (tmp_path / "ranks.py").write_text(RANKS)
    wanted = {
        "smollm3": (str(tiny("smollm3")), None, {"smollm3_implementation": "plugin"}),
        "torchao": (str(tiny("mistral")), "inference-int8-torchao", {}),
    }
    launcher = "torch.distributed.run --standalone --nproc-per-node=2"
    said = run(launcher, tmp_path / "ranks.py", json.dumps(wanted))
    ranks = json.loads(next(line for line in said.splitlines() if line.startswith("SAID"))[5:])
    assert [r["rank"] for r in ranks] == [0, 1]
    stages = {"smollm3": "architecture", "torchao": "quantization"}
    for name, stage in stages.items():
        for rank in ranks:
            assert rank[name] == {"from": f"{NAMES[name]} 1.0.0.dev0", "decided": [stage], "equal": True}
