"""What `loadkit merge` takes: its time beside that of copying the base's files, and its memory.

    python tests/benchmarks/merge.py --shape 7b --work /somewhere/with/45GB

Copying is `cp` of the weight files followed by `sync`; a merge is a whole process, with its imports, that
syncs what it wrote too. Both are a round's, one after the other, with the base's files in the page cache as
far as that holds them (`warm` says how much of them). The folders that they wrote are removed in between.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from checkpoint import SHAPES, Shape, make, weight_files
from watching import in_memory, warm, watched

MERGE = """
import json, sys, loadkit
done = loadkit.merge(sys.argv[1], sys.argv[2], check_adapter_base=False)
print(json.dumps(dict(done.seconds)))
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="1.1b")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--dora", action="store_true")
    parser.add_argument("--work", type=Path, help="a folder for the checkpoint; a temporary one by default")
    given = parser.parse_args()
    work = given.work or Path(tempfile.gettempdir()) / "loadkit-benchmarks"
    base = make(work / given.shape, given.shape)
    with tempfile.TemporaryDirectory(dir=work) as made:
        adapter = make_adapter(Path(made) / "adapter", base, SHAPES[given.shape], given.rank, dora=given.dora)
        rounds = [one(base, adapter, Path(made)) for _ in range(given.rounds)]
    for each in rounds:
        print(json.dumps(each))
    ratios = [each["merge"] / each["copy"] for each in rounds]
    peak = max(each["peak anonymous"] for each in rounds)
    print(f"ratio: median {statistics.median(ratios):.2f}; peak of anonymous memory {peak / 2**20:.0f} MiB")


def one(base: Path, adapter: Path, made: Path) -> dict[str, Any]:
    """Seconds of either, and the merge's peak."""
    files = weight_files(base)
    warm(files)
    share = in_memory(files)
    (made / "copy").mkdir()
    start = time.perf_counter()
    subprocess.run(["cp", *map(str, files), str(made / "copy")], check=True)
    os.sync()
    copied = time.perf_counter() - start
    shutil.rmtree(made / "copy")
    warm(files)
    command = [sys.executable, "-c", MERGE, str(adapter), str(made / "merged")]
    (seconds,), took = watched(command, {}, made)
    shutil.rmtree(made / "merged")
    return {
        "warm": round(share, 2), "copy": round(copied, 2), "merge": round(took["whole process"], 2),
        "peak anonymous": int(took["peak anonymous"]), "phases": seconds,
    }  # fmt: skip


def make_adapter(folder: Path, base: Path, shape: Shape, rank: int, *, dora: bool) -> Path:
    """A LoRA adapter on every linear layer but the head, of random numbers."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for part in shape.tensors():
        for name, size in part.items():
            module = name.removesuffix(".weight")
            if not module.endswith("_proj"):
                continue
            for letter, sides in {"A": (rank, size[1]), "B": (size[0], rank)}.items():
                made = torch.empty(*sides).normal_(0, 0.01, generator=generator)
                tensors[f"base_model.model.{module}.lora_{letter}.weight"] = made
            if dora:
                length = torch.full((size[0],), 0.02 * size[1] ** 0.5)
                tensors[f"base_model.model.{module}.lora_magnitude_vector"] = length
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(base), "r": rank,
        "lora_alpha": 2 * rank, "use_dora": dora,
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


if __name__ == "__main__":
    main()
