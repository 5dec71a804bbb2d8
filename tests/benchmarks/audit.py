"""What the audit costs: its share of a load's time.

    python tests/benchmarks/audit.py --shape 1.1b --work /somewhere/with/5GB

The shares are those of the report (`report.seconds`): the comparison of a sample of tensors with the files,
and the audit itself, against everything from planning to the end. One process, libraries imported and page
cache warm, medians over the rounds.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
import warnings
from pathlib import Path

from checkpoint import SHAPES, make

PROFILES = ("qlora", "qlora-8bit", "lora", "inference")
PROVING = ("comparison", "audit")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="1.1b")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, help="a folder for the checkpoint; a temporary one by default")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.work) as folder:
        checkpoint = make(Path(folder), given.shape)
        for profile in PROFILES:
            print(json.dumps({"profile": profile, **measured(str(checkpoint), profile, given.rounds)}))


def measured(folder: str, profile: str, rounds: int) -> dict[str, float]:
    """Medians of seconds, and of the share that proving takes."""
    import loadkit

    seconds: list[float] = []
    proving: list[float] = []
    for number in range(rounds + 1):  # the first one pays for imports and first calls
        gc.collect()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            took = loadkit.load(folder, profile).report.seconds
        if number:
            seconds.append(sum(took.values()))
            proving.append(sum(took[phase] for phase in PROVING))
    return {
        "seconds": round(statistics.median(seconds), 3),
        "proving": round(statistics.median(proving), 4),
        "share": round(statistics.median(p / s for p, s in zip(proving, seconds, strict=True)), 4),
    }


if __name__ == "__main__":
    main()
