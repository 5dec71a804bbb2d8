"""What DPO's reference costs: loadkit's, beside a second load, and how a k-bit preparation weighs.

    python tests/benchmarks/reference.py --shape 1.1b --work /somewhere/with/5GB

One process for each way, page cache warm. Memory is the process's resident set after one forward pass of the
policy and one of the reference, less what it was after two forward passes of the policy alone; tensors are
counted too.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from checkpoint import SHAPES, make

WAYS = ("reference", "second load", "loadkit's preparation", "PEFT's preparation")


def resident() -> int:
    """Bytes of this process's resident set."""
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmRSS:")).split()[1]) * 1024


def tensors() -> int:
    """Bytes of the distinct storages of all tensors that Python knows of."""
    import torch

    gc.collect()
    found = (o for o in gc.get_objects() if issubclass(type(o), torch.Tensor))
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in found}.values())


def one(way: str, folder: str) -> dict[str, Any]:
    """Measure one way in this process."""
    import torch

    import loadkit

    if "preparation" in way:
        loaded = loadkit.load(folder, "qlora", adapter=False, training=way.startswith("loadkit"))
        before = tensors()
        if way.startswith("PEFT"):
            import peft

            peft.prepare_model_for_kbit_training(loaded.model)
            return {"bytes": tensors(), "upcast": tensors() - before}
        upcast = [c for c in loaded.report.changes if c.phase == "k-bit preparation"]
        return {"bytes": before, "upcast": sum(c.bytes_after - c.bytes_before for c in upcast)}
    loaded = loadkit.load(folder, "qlora")
    inputs = {"input_ids": torch.arange(64).reshape(1, 64)}
    with torch.no_grad():
        loaded.model(**inputs)
        loaded.model(**inputs)
        gc.collect()
        held, rss = tensors(), resident()
        other = (
            loaded.reference() if way == "reference" else loadkit.load(folder, "qlora", adapter=False).model
        )
        other(**inputs)
        gc.collect()
    return {"policy": held, "tensors": tensors() - held, "resident": resident() - rss}


def main() -> None:
    """Run every way in a process of its own and print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="1.1b")
    parser.add_argument("--work", default=None, help="folder for the checkpoint; kept")
    parser.add_argument("--one", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(given.one, given.folder)))
        return
    work = Path(given.work or tempfile.gettempdir()) / "loadkit-benchmarks"
    folder = make(work / given.shape, given.shape)
    figures = {}
    for way in WAYS:
        command = [sys.executable, __file__, "--one", way, "--folder", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        figures[way] = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
