"""Run a process and watch its memory; put files into the page cache, or out of it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

__all__ = ["about", "drop", "in_memory", "warm", "watched"]

EVERY = 0.005
"""Seconds between two looks at the process: a look takes about 50 microseconds."""


def watched(
    command: list[str], environ: Mapping[str, str], cwd: Path
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Run a command to its end.

    Parameters:
        command: its arguments.
        environ: what to add to the environment.
        cwd: the folder to run it in.

    Returns:
        The JSON lines that it printed; seconds from its start to its end, and its peak of anonymous and of
        file-backed memory in bytes, each on its own.

    Raises:
        RuntimeError: it failed.
    """
    peaks = {"RssAnon": 0, "RssFile": 0}
    # Files, as nobody empties a pipe meanwhile.
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as error:
        start = time.perf_counter()
        process = subprocess.Popen(command, env={**os.environ, **environ}, cwd=cwd, stdout=out, stderr=error)
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            for name, value in (line.split(":", 1) for line in _lines(status)):
                if name in peaks:
                    peaks[name] = max(peaks[name], int(value.split()[0]) * 1024)
            time.sleep(EVERY)
        seconds = time.perf_counter() - start
        out.seek(0)
        error.seek(0)
        printed, said = out.read(), error.read()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{said[-3000:]}")
    lines = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    return lines, {
        "whole process": seconds,
        "peak anonymous": peaks["RssAnon"],
        "peak file-backed": peaks["RssFile"],
    }


def warm(files: Iterable[Path]) -> None:
    """Read files into the page cache."""
    buffer = bytearray(1 << 24)
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def drop(files: Iterable[Path]) -> None:
    """Put files out of the page cache, as far as nobody has them mapped."""
    for path in files:
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def in_memory(files: Iterable[Path]) -> float:
    """Share of the files' bytes that are in the page cache."""
    from loadkit.loading.speed.prefetch import missing_bytes

    sizes = {path: path.stat().st_size for path in files}
    return 1 - sum(missing_bytes(path) for path in sizes) / max(1, sum(sizes.values()))


def about() -> dict[str, Any]:
    """The machine and the versions."""
    import psutil

    names = ("torch", "transformers", "bitsandbytes", "peft", "trl", "numba", "safetensors", "loadkit")
    installed = {dist.name: dist.version for dist in distributions()}
    versions = {name: installed.get(name, "not installed") for name in names}
    models = [line for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name")]
    return {
        "machine": platform.machine(),
        "processor": models[0].partition(":")[2].strip() if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory": int(psutil.virtual_memory().total),
        "system": f"{platform.system()} {platform.release()}",
        "python": sys.version.split()[0],
        "versions": versions,
    }


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
