"""The plan's estimate of memory, beside what the loaded model takes.

python tests/benchmarks/estimates.py FOLDER qlora
"""

from __future__ import annotations

import gc
import json
import sys
import warnings
from pathlib import Path

__all__ = ["PROFILES"]

PROFILES = ("inference", "lora", "qlora", "qlora-8bit", "inference-4bit")


def main() -> None:
    """Load by the named profile, touch every page, and print the bytes."""
    folder, profile = sys.argv[1:]
    warnings.simplefilter("ignore")
    import bitsandbytes  # noqa: F401
    import peft  # noqa: F401
    import transformers.modeling_utils  # noqa: F401
    from ways import touch

    import loadkit

    gc.collect()
    before = resident()
    loaded = loadkit.load(folder, profile)
    touch(loaded.model)
    gc.collect()
    memory = loaded.plan.memory
    assert memory is not None
    found = {
        "profile": profile,
        "estimate": memory.model,
        "tensors": loaded.report.measurements.footprint,
        "resident": resident() - before,
    }
    print(json.dumps(found))


def resident() -> int:
    """Bytes of this process's resident set."""
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmRSS:")).split()[1]) * 1024


if __name__ == "__main__":
    main()
