"""All benchmarks of loading, beside what people would use instead.

    python tests/benchmarks/suite.py a c d e f      # about half an hour on 2 cores python
    tests/benchmarks/suite.py b              # the 7.24 B shape: 14.5 GB of disk for the checkpoint, 4 for the
    cache python tests/benchmarks/suite.py --estimate a b # how long they will take here python
    tests/benchmarks/suite.py                # print the tables of what is there, and draw the plots

    a  QLoRA load at 1.1 B: plain from_pretrained, TRL's path, loadkit the first time and again; whole
    processes, and in one process b  the same at 7.24 B without TRL's path, whole processes c  bf16 load at
    1.1 B, with the page cache warm and cold d  8-bit load at 1.1 B e  planning and starting up, beside
    importing AutoConfig f  the plan's memory estimate against what was measured g  with a GPU: quantizing
    against loading again, with the page cache warm and cold

Each sample is added to the file of results as soon as it is there, so that an interrupted run goes on where
it was. The ways take turns. Before each sample the files that it reads are put into the page cache ("warm")
or out of it ("cold"), and what was there is noted.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import estimates
import start
from checkpoint import SHAPES, make, weight_files
from figures import write
from watching import about, drop, in_memory, warm, watched
from ways import AGAIN, CACHE, FIRST, PLAIN, TRL

HERE = Path(__file__).parent
PAGE = HERE.parent.parent / "docs" / "explanation" / "performance.md"
ALL = (PLAIN, TRL, FIRST, AGAIN)


class Loads(NamedTuple):
    """One comparison of ways to load.

    Parameters:
        shape: of the checkpoint.
        profile: loadkit's.
        ways: who takes part.
        rounds: samples of each way.
        inside: how many more in one process, with the libraries imported.
        states: of the page cache.
        device: where to.
    """

    shape: str
    profile: str
    ways: tuple[str, ...] = ALL
    rounds: int = 5
    inside: int = 0
    states: tuple[str, ...] = ("warm",)
    device: str = "cpu"


LOADS = {
    "a": Loads("1.1b", "qlora", inside=5),
    "b": Loads(
        "7b", "qlora", ways=(PLAIN, FIRST, AGAIN), rounds=3
    ),  # TRL calls from_pretrained: (a) shows them equal
    "c": Loads("1.1b", "inference", ways=(PLAIN, TRL, AGAIN), rounds=7, inside=15, states=("warm", "cold")),
    "d": Loads("1.1b", "qlora-8bit", inside=5),
    "g": Loads("1.1b", "qlora", rounds=5, inside=5, states=("warm", "cold"), device="cuda:0"),
}


class Results:
    """The file of samples.

    Parameters:
        path: where it is.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
        self.found.setdefault("samples", [])

    def add(self, sample: dict[str, Any]) -> None:
        """Keep one sample."""
        self.found["samples"].append({**sample, "load average": os.getloadavg()[0]})
        self.found["about"] = about()
        unfinished = self._path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(self.found, indent=1) + "\n")
        unfinished.replace(self._path)

    def count(self, **of: Any) -> int:
        """How many samples are there of some kind."""
        return sum(all(sample.get(k) == v for k, v in of.items()) for sample in self.found["samples"])


def child(*arguments: str) -> list[str]:
    """The command of a process that loads."""
    return [sys.executable, str(HERE / "ways.py"), *arguments]


def load(letter: str, given: Loads, work: Path, results: Results) -> None:
    """Run one comparison, as far as its samples aren't there yet."""
    folder, tiny = make(work / given.shape, given.shape), make(work / "tiny", "tiny")
    device = ("--device", given.device)
    with tempfile.TemporaryDirectory(dir=work, prefix="caches-") as scratch:
        prepared, filled, first = (Path(scratch, name) for name in ("prepared", "filled", "first"))
        watched(child("prepare", str(prepared), str(tiny), given.profile, *device), {}, HERE)
        for number in range(given.rounds):
            for state in given.states:
                at = number % len(given.ways)
                for way in given.ways[at:] + given.ways[:at]:
                    kind = {"benchmark": letter, "way": way, "state": state, "how": "process"}
                    if results.count(**kind) > number:
                        continue
                    if way == AGAIN and not filled.exists():
                        shutil.copytree(prepared, filled)
                        watched(
                            child("once", way, str(folder), given.profile, *device),
                            {CACHE: str(filled)},
                            HERE,
                        )
                    if way == FIRST:
                        shutil.copytree(prepared, first)
                    sample = process(way, folder, given, state, filled if way == AGAIN else first)
                    shutil.rmtree(first, ignore_errors=True)
                    results.add({**kind, **sample})
                    say(letter, way, state, sample["whole process"])
    kind = {"benchmark": letter, "how": "inside", "state": "warm"}
    missing = given.inside - min(results.count(**kind, way=way) for way in given.ways)
    if missing > 0:
        warm(weight_files(folder))
        command = child(
            "in-turn", "|".join(given.ways), str(folder), given.profile, "--tiny", str(tiny), "--rounds", str(missing), *device
        )  # fmt: skip
        for sample in watched(command, {"TQDM_DISABLE": "1"}, HERE)[0]:
            results.add({**kind, **sample})
            say(letter, sample["way"], "one process", sample["weights in memory"])


def process(way: str, folder: Path, given: Loads, state: str, cache: Path) -> dict[str, Any]:
    """Load in a process of its own, with the page cache as asked."""
    files = weight_files(folder)
    if way == AGAIN:  # what it reads instead, where it has that
        files = [*sorted(cache.rglob("*.safetensors"))] or files
    os.sync()
    (drop if state == "cold" else warm)(files)
    there = in_memory(files)
    command = child("once", way, str(folder), given.profile, "--device", given.device)
    lines, measured = watched(command, {CACHE: str(cache)}, HERE)
    return {**measured, **lines[-1], "in the page cache": round(there, 3)}


def say(letter: str, way: str, how: str, seconds: float) -> None:
    """Tell of a sample."""
    print(f"{letter}  {way:20} {how:12} {seconds:9.3f} s", flush=True)


def start_up(work: Path, results: Results) -> None:
    """(e) Whole processes and plans in one process."""
    if not results.count(benchmark="e"):
        for sample in start.measured(make(work / "tiny", "tiny")):
            results.add({"benchmark": "e", **sample})
            print(f"e  {sample['what']:34} {sample['median']:9.3f} {sample['unit']}", flush=True)


def memory(work: Path, results: Results) -> None:
    """(f) The estimate against what was measured."""
    folder = make(work / "1.1b", "1.1b")
    for profile in estimates.PROFILES:
        if not results.count(benchmark="f", profile=profile):
            warm(weight_files(folder))
            command = [sys.executable, str(HERE / "estimates.py"), str(folder), profile]
            lines, _ = watched(command, {}, HERE)
            results.add({"benchmark": "f", **lines[-1]})
            print(
                f"f  {profile:16} {lines[-1]['estimate']:>14,} {lines[-1]['tensors']:>14,} bytes", flush=True
            )


def expected(letter: str, given: Loads | None) -> float:
    """Seconds that a benchmark will take here, roughly: the rate of quantizing is measured, the rest is known
    from elsewhere."""
    if given is None:
        return {"e": 90.0, "f": 120.0}[letter]
    weights, imports, read = SHAPES[given.shape].weights, 8.0, 1e9
    quantizing = 0.0 if given.profile == "inference" else weights / _rate(given.profile)
    if given.device != "cpu":
        quantizing /= 50
    slow = quantizing * (sum(way in (PLAIN, TRL) for way in given.ways) + (FIRST in given.ways) / 4)
    whole = slow + len(given.ways) * (imports + 2 * weights / read)
    return 60 + weights / 1e8 + given.rounds * len(given.states) * whole + given.inside * slow


def _rate(profile: str) -> float:
    """Weights a second that bitsandbytes quantizes here on the CPU."""
    import torch
    from bitsandbytes import functional

    weight = torch.randn(4096, 4096, dtype=torch.bfloat16)
    quantize: Callable[[Any], Any] = (
        functional.quantize_nf4
        if profile == "qlora"
        else lambda w: functional.int8_vectorwise_quant(w.half())
    )
    quantize(weight)
    begun = time.perf_counter()
    quantize(weight)
    return weight.numel() / (time.perf_counter() - begun)


def comparison(letter: str, given: argparse.Namespace) -> Loads | None:
    """The comparison of loads that a letter stands for, as the command line changes it; None for another
    benchmark."""
    loads = LOADS.get(letter)
    if loads is None:
        return None
    rounds, shape = given.rounds or loads.rounds, given.shape or loads.shape
    inside = min(loads.inside, rounds) if given.rounds else loads.inside
    return loads._replace(rounds=rounds, inside=inside, shape=shape)


def chosen(letters: list[str]) -> Iterator[str]:
    """Those that can run here."""
    for letter in letters:
        if (
            letter == "g"
            and subprocess.run(
                [sys.executable, "-c", "import torch, sys; sys.exit(not torch.cuda.is_available())"],
                check=False,
            ).returncode
        ):
            print("g  left out: torch finds no CUDA device")
            continue
        yield letter


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "letters",
        nargs="*",
        choices=[[], *"abcdefg"],
        metavar="LETTER",
        help="which of a to g; none for the tables alone",
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=Path(tempfile.gettempdir()) / "loadkit-benchmarks",
        help="folder for the checkpoints; kept",
    )
    parser.add_argument(
        "--results", type=Path, default=HERE / "results.json", help="file of samples; added to"
    )
    parser.add_argument(
        "--page",
        type=Path,
        default=PAGE,
        help="the page that gets the tables, between its marks; the plots go beside it",
    )
    parser.add_argument("--rounds", type=int, help="samples of each way, instead of each benchmark's own")
    parser.add_argument("--shape", choices=SHAPES, help="another shape, to try the scripts")
    parser.add_argument("--estimate", action="store_true", help="only tell how long it will take")
    given = parser.parse_args()  # fmt: skip
    results = Results(given.results)
    letters = list(chosen(sorted(set(given.letters))))
    for letter in letters:
        print(
            f"{letter}  about {expected(letter, comparison(letter, given)) / 60:.0f} minutes, when the machine has nothing else to do",
            flush=True,
        )
    if given.estimate:
        return
    given.work.mkdir(parents=True, exist_ok=True)
    for letter in letters:
        loads = comparison(letter, given)
        if loads is not None:
            load(letter, loads, given.work, results)
        else:
            {"e": start_up, "f": memory}[letter](given.work, results)
    if results.found["samples"]:
        write(results.found, given.page)


if __name__ == "__main__":
    main()
