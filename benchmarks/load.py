"""loadkit.load beside plain from_pretrained, for the same arguments, alternating in one run.

    python benchmarks/load.py --shape 1.1b --rounds 7 --work /somewhere/with/5GB

Three measurements, alternating, page cache warm (the file is read once before):

* seconds until the model is there, in one process with the libraries imported. On a CPU unquantized weights are only mapped then,
  not read, so that this is a few hundredths of a second however large the file is;
* seconds until its weights are in memory too: every page of them is touched;
* peak resident memory and seconds of a whole process that loads once, imports included.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

from checkpoint import SHAPES, make

PROFILES = ("inference", "qlora")


def plain(folder: str, profile: str) -> Any:
    """The lines that people write themselves."""
    import torch
    import transformers

    kwargs: dict[str, Any] = {
        "dtype": torch.bfloat16,
        "attn_implementation": "sdpa",
        "device_map": {"": "cpu"},
    }
    if profile == "qlora":
        kwargs["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    return transformers.AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, **kwargs)


def ours(folder: str, profile: str) -> Any:
    """The same through loadkit; the adapter is left out, as the plain lines attach none."""
    import loadkit

    return loadkit.load(folder, profile, adapter=False).model


WAYS = {"from_pretrained": plain, "loadkit": ours}


def seconds(folder: str, profile: str, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of each way, alternating; the first round of both warms up and isn't counted."""
    there: dict[str, list[float]] = {name: [] for name in WAYS}
    resident: dict[str, list[float]] = {name: [] for name in WAYS}
    for number in range(rounds + 1):
        order = list(WAYS) if number % 2 == 0 else list(WAYS)[::-1]
        for name in order:
            gc.collect()
            start = time.perf_counter()
            model = WAYS[name](folder, profile)
            loaded = time.perf_counter() - start
            for parameter in model.parameters():
                parameter.detach().view(-1)[:: 4096 // parameter.element_size()].float().sum()
            touched = time.perf_counter() - start
            del model
            if number:
                there[name].append(loaded)
                resident[name].append(touched)
    return {"there": there, "resident": resident}


def process(folder: str, profile: str, name: str) -> tuple[int, float]:
    """Bytes of peak resident memory and seconds of a process that loads once."""
    code = f"import load; load.once({folder!r}, {profile!r}, {name!r})"
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    )
    return int(done.stdout.split()[-1]), time.perf_counter() - start


def once(folder: str, profile: str, name: str) -> None:
    """Load, touch every page, and print the process's peak resident memory in bytes."""
    for parameter in WAYS[name](folder, profile).parameters():
        parameter.detach().view(-1)[:: 4096 // parameter.element_size()].float().sum()
    status = Path("/proc/self/status").read_text()  # ru_maxrss would count the parent's memory at the fork
    print(next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:")))


def compared(values: dict[str, list[float]]) -> dict[str, Any]:
    """Medians of both ways, their ratio, and the spread."""
    medians = {name: statistics.median(v) for name, v in values.items()}
    return {
        **medians,
        "ratio": medians["loadkit"] / medians["from_pretrained"],
        "spread": {name: [min(v), max(v)] for name, v in values.items()},
    }


def main() -> None:
    """Measure and print a table; --output writes the figures as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=sorted(SHAPES), default="1.1b")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--profiles", nargs="+", default=list(PROFILES))
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "loadkit-benchmarks")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    os.environ.setdefault("TQDM_DISABLE", "1")
    folder = str(make(args.work / args.shape, args.shape))
    for path in Path(folder).glob("*.safetensors"):
        with path.open("rb") as file:  # warm the page cache
            while file.read(1 << 24):
                pass
    results = []
    for profile in args.profiles:
        taken = seconds(folder, profile, args.rounds)
        runs = {name: [] for name in WAYS}
        for _ in range(args.processes):
            for name, kept in runs.items():
                kept.append(process(folder, profile, name))
        found = {
            "model there, seconds": compared(taken["there"]),
            "weights in memory, seconds": compared(taken["resident"]),
            "whole process, seconds": compared({n: [r[1] for r in v] for n, v in runs.items()}),
            "peak resident, bytes": compared({n: [r[0] for r in v] for n, v in runs.items()}),
        }
        results.append(
            {
                "shape": args.shape,
                "profile": profile,
                "rounds": args.rounds,
                "processes": args.processes,
                **found,
            }
        )
        for what, figures in found.items():
            print(
                f"{args.shape} {profile:10} {what:27} from_pretrained {figures['from_pretrained']:>16,.3f}  "
                f"loadkit {figures['loadkit']:>16,.3f}  ratio {figures['ratio']:.3f}",
                flush=True,
            )
    about = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, page cache warm",
        **{name: version(name) for name in ("torch", "transformers", "bitsandbytes", "loadkit")},
    }
    if args.output:
        args.output.write_text(json.dumps({"about": about, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
