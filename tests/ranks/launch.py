"""Launch a function of `engines`, `faults` or `hub_loads` in several real processes, and collect what each one found."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import loadkit

__all__ = ["Launched", "launch", "report", "started"]

TESTS = Path(__file__).parent.parent
LAUNCHERS = {
    "torchrun": [sys.executable, "-m", "torch.distributed.run", "--standalone"],
    # With --cpu accelerate 1.15 starts one process whatever --num_processes says; as if for GPUs it starts them all.
    "accelerate": [
        *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"),
        *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
    ],
}


class Launched(NamedTuple):
    """What a launch came to.

    Parameters:
        results: rank to what it reported.
        output: everything printed.
        seconds: how long it took.
        code: the launcher's exit code; of processes without one, the codes' highest.
    """

    results: dict[int, Any]
    output: str
    seconds: float
    code: int


def launch(
    what: str, ranks: int, out: Path, *args: object, launcher: str = "torchrun", **environ: str
) -> Launched:
    """Run "module:function" in so many processes.

    Parameters:
        what: the module in this folder, and its function; it is given `out` and `args` as texts.
        ranks: how many processes.
        out: where results go.
        args: further arguments.
        launcher: "torchrun", "accelerate", or "none" for processes that only have the variables, as SLURM starts them.
        environ: further variables.
    """
    start = time.monotonic()
    with started(what, ranks, out, *args, launcher=launcher, **environ) as processes:
        outputs = [process.communicate(timeout=300)[0] for process in processes]
    results = {int(p.stem.removeprefix("rank")): json.loads(p.read_text()) for p in out.glob("rank*.json")}
    codes = [abs(process.returncode) for process in processes]
    return Launched(results, "".join(outputs), time.monotonic() - start, max(codes))


@contextmanager
def started(
    what: str, ranks: int, out: Path, *args: object, launcher: str = "torchrun", **environ: str
) -> Iterator[list[subprocess.Popen[str]]]:
    """The processes of a launch, by rank where there is no launcher; ended with the block."""
    out.mkdir(parents=True, exist_ok=True)
    command = [str(Path(__file__).with_name("program.py")), what, str(out), *map(str, args)]
    env = _environment() | environ
    if launcher == "none":
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
        starts = [([sys.executable, *command], env | _place(rank, ranks)) for rank in range(ranks)]
    else:
        flag = {"torchrun": ["--nproc-per-node", str(ranks)], "accelerate": ["--num_processes", str(ranks)]}
        starts = [([*LAUNCHERS[launcher], *flag[launcher], *command], env)]
    processes = [
        subprocess.Popen(
            argv, env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=out
        )
        for argv, variables in starts
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def report(out: str, value: object) -> None:
    """What a rank tells its test; whole or not at all."""
    path = Path(out) / f"rank{os.environ.get('RANK', '0')}.json"
    path.with_suffix(".part").write_text(json.dumps(value))
    path.with_suffix(".part").replace(path)


def _environment() -> dict[str, str]:
    """One thread a process, and this clone's loadkit; no variables of an outer launch."""
    kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    path = [str(Path(loadkit.__file__).parent.parent), str(TESTS.parent / "plugins"), str(TESTS)]
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join([*path, os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
        "TQDM_DISABLE": "1",
    }


def _place(rank: int, ranks: int) -> dict[str, str]:
    text = str(rank)
    return {"RANK": text, "LOCAL_RANK": text, "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
