"""How long planning takes as a whole process, beside importing AutoConfig and reading the config.

    python benchmarks/start.py --rounds 9

Each command runs in a process of its own, alternating; medians of wall seconds, caches warm.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from checkpoint import make


def main() -> None:
    """Measure and print a line a command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "loadkit-benchmarks")
    args = parser.parse_args()
    folder = make(args.work / "tiny", "tiny")
    loadkit = str(Path(sys.executable).with_name("loadkit"))
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "import loadkit": [sys.executable, "-c", "import loadkit"],
        "loadkit --help": [loadkit, "--help"],
        "loadkit plan (a folder)": [loadkit, "plan", str(folder), "--profile", "qlora"],
        "AutoConfig.from_pretrained": [
            sys.executable,
            "-c",
            f"import transformers; transformers.AutoConfig.from_pretrained({str(folder)!r})",
        ],
    }
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(args.rounds + 1):
        for name, command in commands.items():
            start = time.perf_counter()
            subprocess.run(command, capture_output=True, check=True)
            if number:
                taken[name].append(time.perf_counter() - start)
    for name, values in taken.items():
        print(f"{name:28} {statistics.median(values):.3f} s  ({min(values):.3f} to {max(values):.3f})")


if __name__ == "__main__":
    main()
