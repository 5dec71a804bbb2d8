"""Host memory of a launch: the proportional set size of N ranks that load the same checkpoint, beside that of
one.

    python tests/benchmarks/ranks.py --shape 1.1b --ranks 1 2 4 --work /somewhere/with/5GB

A page that several processes map counts for each by its share (Pss in /proc/PID/smaps_rollup), so that the
sum over the ranks is what they take together. It is taken three times: with the libraries imported and a tiny
model loaded, right after `loadkit.load`, and when every page of the weights has been read. What the loads add
is the difference; Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from checkpoint import SHAPES, make


def pss() -> int:
    """This process's proportional set size, in bytes."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def rank(folder: str, warm: str, profile: str) -> None:
    """One process of a launch; rank 0 prints the sums. Between the steps all ranks stand still."""
    import torch
    import torch.distributed as dist

    import loadkit

    dist.init_process_group("gloo")

    def total() -> int:
        dist.barrier()
        found = torch.tensor(pss())
        dist.all_reduce(found)
        return int(found)

    loadkit.load(warm, profile)  # imports whatever that takes
    before = total()
    model = loadkit.load(folder, profile).model
    loaded = total()
    for parameter in model.parameters():
        parameter.detach().view(-1)[:: 4096 // parameter.element_size()].float().sum()
    touched = total()
    if dist.get_rank() == 0:
        print(
            json.dumps({"before": before, "loaded": loaded - before, "touched": touched - before}), flush=True
        )
    dist.barrier()
    dist.destroy_process_group()


def launch(folder: str, warm: str, profile: str, ranks: int) -> dict[str, int]:
    """The sums over so many ranks, in bytes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = []
    for number in map(str, range(ranks)):
        place = {
            "RANK": number,
            "LOCAL_RANK": number,
            "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks),
        }
        env = os.environ | place | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        code = f"import ranks; ranks.rank({folder!r}, {warm!r}, {profile!r})"
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", code],
                cwd=Path(__file__).parent,
                env=env,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit("a rank failed: see above")
    found: dict[str, int] = json.loads(outputs[0].splitlines()[-1])
    return found


def main() -> None:
    """Measure and print a table; --output writes the figures as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=sorted(SHAPES), default="1.1b")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--profiles", nargs="+", default=["inference"])
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "loadkit-benchmarks")
    parser.add_argument(
        "--folder", type=Path, help="another checkpoint, such as one that was saved in 4 bits"
    )
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    os.environ.setdefault("TQDM_DISABLE", "1")
    folder = str(args.folder or make(args.work / args.shape, args.shape))
    warm = str(make(args.work / "tiny", "tiny"))
    results = []
    for profile in args.profiles:
        single: dict[str, int] = {}
        for ranks in args.ranks:
            found = launch(folder, warm, profile, ranks)
            single = single or found
            results.append({"shape": args.shape, "profile": profile, "ranks": ranks, **found})
            print(
                f"{args.shape} {profile:10} {ranks} ranks: libraries {found['before']:>14,}  loaded {found['loaded']:>14,}  "
                f"touched {found['touched']:>14,}  ratio to {args.ranks[0]} {found['touched'] / single['touched']:.3f}",
                flush=True,
            )
    if args.output:
        args.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
