"""Whether another Python plans the same, without torch: plans of one are compared with those of another.

python tests/stacks/plans.py make FOLDER            tiny checkpoints (needs torch)
python3.12 tests/stacks/plans.py plan FOLDER OUT.json
python tests/stacks/plans.py compare OUT.json OTHER.json
"""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path
from typing import Any

ARCHITECTURES = ("mistral", "llama", "gemma3", "mixtral", "gpt2", "t5", "llava", "qwen2")
PROFILES = ("full", "lora", "qlora", "inference")


def make(folder: Path) -> None:
    from loadkit.testing.checkpoints import make_checkpoint

    for arch in ARCHITECTURES:
        make_checkpoint(folder / arch, arch)


def plan(folder: Path, out: Path) -> None:
    import loadkit

    found: dict[str, Any] = {}
    for arch in ARCHITECTURES:
        for profile in PROFILES:
            made = loadkit.plan(str(folder / arch), profile)
            decided = [[d.stage, repr(d.value), d.because] for d in made.decisions]
            found[f"{arch} {profile}"] = [made.kwargs, decided]
    assert "torch" not in sys.modules
    out.write_text(json.dumps({"python": platform.python_version(), "plans": found}), encoding="utf-8")


def compare(one: Path, other: Path) -> int:
    a, b = (json.loads(path.read_text(encoding="utf-8")) for path in (one, other))
    differ = [name for name, made in a["plans"].items() if made != b["plans"].get(name)]
    print(
        f"Python {a['python']} and {b['python']}: {len(a['plans'])} plans, {len(differ)} differ {differ[:3]}"
    )
    return bool(differ)


if __name__ == "__main__":
    what, *paths = sys.argv[1:]
    sys.exit({"make": make, "plan": plan, "compare": compare}[what](*map(Path, paths)))
