"""The share of each process under tensor parallelism, planned against loaded: two real processes, transformers' own splitting."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

SPLIT = ("gemma3", "llama", "llava", "mistral", "mixtral", "qwen2", "qwen2-tied", "smollm3")

LOAD = """
import json, os, sys
import loadkit
from loadkit.facts.load_facts import read_load_facts
from loadkit.loading.from_pretrained import load_model
from loadkit.hooks.manager import default_manager

found = {}
for path in sys.argv[2:]:
    plan = loadkit.plan(path, tp_plan="auto")
    model = load_model(plan, read_load_facts(plan), default_manager()).model
    parts = [p.to_local() if hasattr(p, "to_local") else p for p in model.parameters()]
    held = sum(p.numel() * p.element_size() for p in parts)
    found[path] = (held, plan.memory.per_rank.weights, plan.memory.model)
with open(f"{sys.argv[1]}/{os.environ['RANK']}.json", "w") as file:
    json.dump(found, file)
"""


def test_each_process_holds_what_was_planned(tiny: Callable[..., Path], tmp_path: Path) -> None:
    script = tmp_path / "load.py"
    script.write_text(LOAD)
    paths = [str(tiny(name)) for name in SPLIT]
    run = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    done = subprocess.run(
        [*run, str(script), str(tmp_path), *paths], capture_output=True, text=True, check=False, timeout=500
    )
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert list(found) == paths
        for path, (held, planned, whole) in found.items():
            assert held == planned < 0.8 * whole, path
