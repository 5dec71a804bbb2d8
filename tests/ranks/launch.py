"""Launch a function of a module here in several real processes, and collect what each one found."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from forks import Forks

import loadkit

__all__ = ["Launched", "launch", "report"]

TESTS = Path(__file__).parent.parent
PROGRAM = Path(__file__).with_name("program.py")
LAUNCHERS = {
    "torchrun": [sys.executable, "-m", "torch.distributed.run", "--standalone"],
    # With --cpu accelerate 1.15 starts one process whatever --num_processes says; as if for GPUs it starts
    # them all.
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
        code: the launcher's exit code; of processes without one, the codes' highest.
    """

    results: dict[int, Any]
    output: str
    code: int


def launch(
    what: str, ranks: int, out: Path, *args: object, launcher: str | Forks = "torchrun", **environ: str
) -> Launched:
    """Run "module:function" in so many processes.

    Parameters:
        what: the module in this folder, and its function; it is given `out` and `args` as texts.
        ranks: how many processes.
        out: where results go.
        args: further arguments.
        launcher: "torchrun", "accelerate", or what forks processes that only have the variables, as SLURM
            starts them.
        environ: further variables.
    """
    out.mkdir(parents=True, exist_ok=True)
    command = [what, str(out), *map(str, args)]
    env = _environment() | environ
    if isinstance(launcher, Forks):
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
        started = [
            launcher.start(PROGRAM, *command, environ=env | _place(rank, ranks), folder=out)
            for rank in range(ranks)
        ]
        ended = [process.wait() for process in started]
    else:
        flag = {"torchrun": ["--nproc-per-node", str(ranks)], "accelerate": ["--num_processes", str(ranks)]}
        argv = [*LAUNCHERS[launcher], *flag[launcher], str(PROGRAM), *command]
        ended = [subprocess.run(argv, env=env, text=True, capture_output=True, cwd=out, timeout=500)]
    results = {int(p.stem.removeprefix("rank")): json.loads(p.read_text()) for p in out.glob("rank*.json")}
    output = "".join(each.stdout + each.stderr for each in ended)
    return Launched(results, output, max(abs(each.returncode) for each in ended))


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
    """Below the ports that systems give to whoever asks for any, so that nobody is given it before it is
    used."""
    while True:
        port = random.randrange(20_000, 30_000)
        with socket.socket() as free:
            try:
                free.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
