"""The machine: accelerators, memory and installed packages, read without torch."""

from __future__ import annotations

import functools
import os
import platform
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from loadkit.facts.machine.unusable import OPTIONAL, unusable

__all__ = ["Accelerator", "Machine", "read_machine", "this_machine"]

_DIST_INFO = re.compile(r"^(?P<name>[A-Za-z0-9._]+?)-(?P<version>[^-]+)(-.*)?\.(dist|egg)-info$")


class Accelerator(msgspec.Struct, frozen=True, kw_only=True):
    """One accelerator that torch can use.

    Parameters:
        kind: torch's device type.
        name: what the driver calls it.
        capability: CUDA compute capability, (8, 0) for sm80; (0, 0) where the kind has none.
        memory: bytes of its own memory in all; 0 where it shares the machine's.
    """

    kind: Literal["cuda", "mps", "xpu", "npu"]
    name: str
    capability: tuple[int, int] = (0, 0)
    memory: int = 0


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """What this machine can do.

    Parameters:
        accelerators: those that this process may use, in device order.
        memory: bytes of main memory in all; 0 where that isn't known.
        cores: processor cores this process may use.
        platform: "linux", "darwin" or "win32".
        packages: installed distributions, normalised name ("flash-attn") to version.
        unusable: those of `packages` that are known not to be importable here, with the reason; that is
            known of few before a load.
        notes: what the user should know of the reading, such as a GPU that the installed torch can't use.
    """

    accelerators: tuple[Accelerator, ...] = ()
    memory: int = 0
    cores: int = 1
    platform: str = "linux"
    packages: dict[str, str] = {}
    unusable: dict[str, str] = {}
    notes: tuple[str, ...] = ()

    @property
    def kind(self) -> Literal["cuda", "mps", "xpu", "npu", "cpu"]:
        """torch's device type of the first accelerator, "cpu" where there is none."""
        return self.accelerators[0].kind if self.accelerators else "cpu"

    @property
    def capability(self) -> tuple[int, int]:
        """The lowest compute capability among CUDA devices; (0, 0) without one."""
        found = [a.capability for a in self.accelerators if a.kind == "cuda"]
        return min(found, default=(0, 0))

    def version(self, package: str) -> tuple[int, ...] | None:
        """A package's version as leading numbers, (2, 7, 4) for "2.7.4.post1"; None where it is missing."""
        text = self.packages.get(_normalised(package))
        if text is None:
            return None
        numbers = re.match(r"\d+(\.\d+)*", text)
        return tuple(int(n) for n in numbers.group().split(".")) if numbers else ()

    def describe(self) -> str:
        """One line: "CPU, 2 cores, 23.5 GiB" or "1 × NVIDIA H100 80GB HBM3 (sm90, 79.6 GiB)"."""
        if not self.accelerators:
            return f"CPU, {self.cores} cores, {self.memory / 2**30:.1f} GiB"
        first = self.accelerators[0]
        capability = f"sm{first.capability[0]}{first.capability[1]}, " if first.kind == "cuda" else ""
        return f"{len(self.accelerators)} × {first.name} ({capability}{first.memory / 2**30:.1f} GiB)"


def this_machine() -> Machine:
    """The facts of this machine, read once a process; what can't be imported may come to light later."""
    machine = _read_once()
    faults = unusable(name for name in OPTIONAL if name in machine.packages)
    return msgspec.structs.replace(machine, unusable=faults) if faults else machine


@functools.lru_cache(maxsize=1)
def _read_once() -> Machine:
    return read_machine()


def read_machine(environ: Mapping[str, str] | None = None, path: Sequence[str] | None = None) -> Machine:
    """Read the machine's facts, NVIDIA's through its management library.

    Parameters:
        environ: the environment; the process's own by default.
        path: the folders that hold distributions; `sys.path` by default.

    Returns:
        The facts. A driver that can't be asked counts as no accelerator, with a note.
    """
    env = os.environ if environ is None else environ
    packages = dict(sorted(_distributions(sys.path if path is None else path)))
    accelerators, note = _accelerators(env, packages.get("torch", ""))
    return Machine(
        accelerators=accelerators,
        memory=_memory(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        platform=sys.platform,
        packages=packages,
        notes=(note,) if note else (),
    )


def _distributions(path: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Read metadata folders' names and versions: importlib.metadata would open hundreds of files."""
    for folder in reversed([p for p in path if p]):  # earlier folders shadow later ones
        try:
            entries = sorted(os.listdir(folder))
        except OSError:
            continue
        for entry in entries:
            found = _DIST_INFO.match(entry)
            if found:
                yield _normalised(found["name"]), found["version"]


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _memory() -> int:
    import psutil

    total = int(psutil.virtual_memory().total)
    limit = Path("/sys/fs/cgroup/memory.max")  # a container's limit, where it is lower
    try:
        text = limit.read_text().strip()
    except OSError:
        return total
    return min(total, int(text)) if text.isdigit() else total


def _accelerators(env: Mapping[str, str], torch_version: str) -> tuple[tuple[Accelerator, ...], str]:
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return (Accelerator(kind="mps", name="Apple silicon"),), ""
    found, note = _nvidia(env)
    if found and torch_version.endswith("+cpu"):
        note = f"{len(found)} × {found[0].name} found, but torch {torch_version} is built for the CPU only"
        return (), note
    return found, note


def _nvidia(env: Mapping[str, str]) -> tuple[tuple[Accelerator, ...], str]:
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return (), ""
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        uuids = [pynvml.nvmlDeviceGetUUID(handle) for handle in handles]
        devices = [
            Accelerator(
                kind="cuda",
                name=pynvml.nvmlDeviceGetName(handle),
                capability=tuple(pynvml.nvmlDeviceGetCudaComputeCapability(handle)),
                memory=int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
            )
            for handle in handles
        ]
    except pynvml.NVMLError as error:
        return (), f"NVIDIA's driver answered {error}: no accelerator is counted"
    finally:
        pynvml.nvmlShutdown()
    visible = env.get("CUDA_VISIBLE_DEVICES")
    return tuple(devices if visible is None else _visible(visible, devices, uuids)), ""


def _visible(spec: str, devices: Sequence[Accelerator], uuids: Sequence[str]) -> Iterator[Accelerator]:
    """CUDA's rule: entries in order, by index or the start of a UUID; the first invalid one ends the list."""
    for entry in (part.strip() for part in spec.split(",")):
        if entry.isdigit() and int(entry) < len(devices):
            yield devices[int(entry)]
        elif entry and (match := [i for i, uuid in enumerate(uuids) if uuid.startswith(entry)]):
            yield devices[match[0]]
        else:
            return
