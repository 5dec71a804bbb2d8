"""Keep what the tests of a stack came to: `record.py RESULTS.json STACK RESULTS.xml`, run in its environment.

Results of folders that ran before stay, those of folders that ran now are replaced.
"""

from __future__ import annotations

import json
import platform
import sys
from collections import Counter
from importlib import metadata
from pathlib import Path
from xml.etree import ElementTree

SHOWN = ("transformers", "peft", "accelerate", "huggingface-hub", "bitsandbytes", "trl", "torch", "click")


def record(results: Path, stack: str, junit: Path) -> None:
    counts: dict[str, Counter[str]] = {}
    for case in ElementTree.parse(junit).getroot().iter("testcase"):
        parts = case.attrib["classname"].split(".")
        folder = "/".join(parts[:2])
        outcome = next((e.tag for e in case if e.tag in ("failure", "error", "skipped")), "passed")
        counts.setdefault(folder, Counter())[
            {"failure": "failed", "error": "failed"}.get(outcome, outcome)
        ] += 1
    kept = json.loads(results.read_text(encoding="utf-8")) if results.is_file() else {}
    before = kept.get(stack, {}).get("tests", {})
    kept[stack] = {
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in SHOWN},
        "tests": dict(sorted({**before, **{f: dict(sorted(c.items())) for f, c in counts.items()}}.items())),
    }
    results.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    record(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
