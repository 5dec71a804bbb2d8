"""Loads in processes of their own, forked off one that computed nothing (tests/forks.py).

together FOLDER OUT COUNT      COUNT loads at the same moment, each says what it got
killed FOLDER OUT COUNT        COUNT loads one after the other, each killed at another moment
touched FOLDER OUT STEP        loads, each killed as it touches the cache for the n-th time; every STEP-th n
written FOLDER OUT STEP        loads, each killed in the midst of the n-th tensor that it writes
alone FOLDER OUT 1             one load
limited FOLDER OUT 1           one load that can't write files of more than 50,000 bytes, nothing early
mortal FOLDER OUT 1            one load that permissions hold for, root's too
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers

import loadkit
from loadkit.plugins import Entries
from loadkit_plugins.quantized_cache import handover
from loadkit_plugins.quantized_cache.tensor_file import TensorFile
from loadkit_plugins.quantized_cache.writer import finish_writing

KILL = os.kill
"""Kept from before a plugin runs, when the one in `os` refuses to end the process."""

OPTIONS = {"load_in_4bit": True, "bnb_4bit_use_double_quant": True}


def load(folder: str, out: Path) -> None:
    torch.set_num_threads(1)
    loaded = loadkit.load(folder, **OPTIONS)
    digest = hashlib.sha256()
    for name, tensor in loaded.model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    finish_writing()
    told = [line for line in loaded.report.shortcuts if "quantized-cache" in line]
    out.write_text(json.dumps({"bits": digest.hexdigest(), "told": " ".join(told)}))


def child(folder: str, out: Path, at: float = 0.0) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        while time.time() < at:
            time.sleep(0.001)
        load(folder, out)
    except BaseException as error:
        out.with_suffix(".error").write_text(f"{type(error).__name__}: {error}")
        os._exit(1)
    os._exit(0)


def together(folder: str, out: Path, count: int) -> None:
    at = time.time() + 0.5
    for pid in [child(folder, out / f"{n}.json", at) for n in range(count)]:
        os.waitpid(pid, 0)


def killed(folder: str, out: Path, count: int) -> None:
    """Kill at moments spread over a whole load and its writing; after each, look at what is there and start
    anew if it is good."""
    entries, seen = Entries(), []
    start = time.monotonic()
    os.waitpid(child(folder, out / "whole.json"), 0)
    whole = time.monotonic() - start
    for entry in entries:
        entries.drop(entry.record.key)
    for n in range(count):
        pid = child(folder, out / f"{n}.json")
        time.sleep(whole * (0.2 + 0.9 * n / count))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        found = list(entries)
        seen.append(
            {
                "damage": [entry.damage() for entry in found],
                "remains": len(entries.broken()),
                "left": sorted(
                    p.name for folder in entries.root.glob(".*.partial") for p in folder.iterdir()
                ),
            }
        )
        for entry in found:
            entries.drop(entry.record.key)
    os.waitpid(child(folder, out / "after.json"), 0)
    os.waitpid(child(folder, out / "again.json"), 0)
    (out / "seen.json").write_text(json.dumps(seen))


TOUCHES = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.utime", "os.listdir", "os.scandir")


def die_at(number: int, root: str) -> None:
    """Kill this process as it touches anything below a folder for the n-th time."""
    seen = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if event in TOUCHES and arguments and str(arguments[0]).startswith(root):
            seen += 1
            if seen == number:
                KILL(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def die_writing(number: int) -> None:
    """Kill this process when half of the n-th tensor is on its way to the disk."""
    seen, real = 0, TensorFile._write

    def write(file: TensorFile, at: int, piece: memoryview) -> None:
        nonlocal seen
        seen += 1
        if seen == number:
            real(file, at, piece[: len(piece) // 2])
            KILL(os.getpid(), signal.SIGKILL)
        real(file, at, piece)

    TensorFile._write = write  # type: ignore[method-assign]


def touched(folder: str, out: Path, count: int) -> None:
    root = str(Entries().root)
    dying(folder, out, count, lambda number: die_at(number, root))


def written(folder: str, out: Path, count: int) -> None:
    dying(folder, out, count, die_writing)


def dying(folder: str, out: Path, step: int, die: Callable[[int], None]) -> None:
    """Loads that are to die at the moments 1, 1 + step and so on, until one gets through."""
    entries, faults, number = Entries(), [], 1
    while True:
        target = out / f"{number}.json"
        pid = os.fork()
        if not pid:
            try:
                die(number)
                load(folder, target)
            finally:
                os._exit(0)
        _, status = os.waitpid(pid, 0)
        for entry in entries:
            if fault := entry.damage():
                faults.append(f"{number}: {fault}")
            entries.drop(entry.record.key)
        if not os.WIFSIGNALED(status):
            break
        number += step
    entries.prune()
    os.waitpid(child(folder, out / "after.json"), 0)
    os.waitpid(child(folder, out / "again.json"), 0)
    (out / "seen.json").write_text(
        json.dumps({"faults": faults, "moments": number, "broken": entries.broken()})
    )


def alone(folder: str, out: Path, count: int) -> None:
    assert count == 1
    load(folder, out / "0.json")


def limited(folder: str, out: Path, count: int) -> None:
    handover.SMALL = 2**60
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    alone(folder, out, count)


def mortal(folder: str, out: Path, count: int) -> None:
    """Root's capabilities to write and read everywhere are taken away first (capset(2))."""
    if os.geteuid() == 0:
        override, read_search, version = 1 << 1, 1 << 2, 0x20080522
        header, sets = (ctypes.c_uint32 * 2)(version, 0), (ctypes.c_uint32 * 6)()
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.capget(header, sets) == 0
        for effective_or_permitted in (0, 1):
            sets[effective_or_permitted] &= ~(override | read_search)
        assert libc.capset(header, sets) == 0
    alone(folder, out, count)


WAYS = {way.__name__: way for way in (together, killed, touched, written, alone, limited, mortal)}

if __name__ == "__main__":
    transformers.utils.logging.disable_progress_bar()
    handover.SMALL = 2048  # what a tiny model has is written early too
    WAYS[sys.argv[1]](sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
