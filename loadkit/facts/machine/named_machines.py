"""Machines that aren't here, by name: "8xH100-80GB", "cpu-64GB", "8x80GB-sm90"."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Literal, NamedTuple

import msgspec

from loadkit.errors import Problem
from loadkit.facts.machine.machine import Accelerator, Machine
from loadkit.text.suggest import did_you_mean

__all__ = ["KNOWN", "NamedAccelerator", "accelerator_fault", "named_machine"]

_problem = partial(Problem, "machine", "loadkit")

GIB, MIB = 2**30, 2**20

CAPABILITIES = "developer.nvidia.com/cuda-gpus"
"""NVIDIA's table of compute capabilities, which all of `KNOWN` are from."""


class KnownAccelerator(NamedTuple):
    """What an accelerator's driver calls it, its compute capability, its bytes of memory, and who says so."""

    name: str
    capability: tuple[int, int]
    memory: int
    source: str


class NamedAccelerator(msgspec.Struct, frozen=True, kw_only=True):
    """An accelerator that can be asked for by name, from a plugin.

    Parameters:
        short: what to ask for, "MI300X-192GB".
        name: what its driver calls it.
        memory: its bytes.
        capability: NVIDIA's compute capability; (0, 0) for others'.
        kind: what torch calls its devices.
        source: who says so.
    """

    short: str
    name: str
    memory: int
    source: str
    capability: tuple[int, int] = (0, 0)
    kind: Literal["cuda", "mps", "xpu", "npu"] = "cuda"


_SHEET = "data sheet of the {} (NVIDIA), GB counted as GiB"

KNOWN: Mapping[str, KnownAccelerator] = {
    "A10G-24GB": KnownAccelerator(
        "NVIDIA A10G", (8, 6), 24 * GIB, _SHEET.format("A10G in AWS's G5 instances")
    ),
    "A100-40GB": KnownAccelerator("NVIDIA A100-SXM4-40GB", (8, 0), 40 * GIB, _SHEET.format("A100")),
    "A100-80GB": KnownAccelerator("NVIDIA A100-SXM4-80GB", (8, 0), 80 * GIB, _SHEET.format("A100")),
    "B200-180GB": KnownAccelerator(
        "NVIDIA B200", (10, 0), 180 * GIB, _SHEET.format("DGX B200: 1,440 GB over 8")
    ),
    "H100-80GB": KnownAccelerator("NVIDIA H100 80GB HBM3", (9, 0), 80 * GIB, _SHEET.format("H100")),
    "H200-141GB": KnownAccelerator(
        "NVIDIA H200", (9, 0), 141 * 10**9, "data sheet of the H200 (NVIDIA): 141 GB"
    ),
    "L4-24GB": KnownAccelerator("NVIDIA L4", (8, 9), 24 * GIB, _SHEET.format("L4")),
    "L40S-48GB": KnownAccelerator("NVIDIA L40S", (8, 9), 48 * GIB, _SHEET.format("L40S")),
    "RTX3090-24GB": KnownAccelerator("NVIDIA GeForce RTX 3090", (8, 6), 24 * GIB, _SHEET.format("RTX 3090")),
    "RTX4090-24GB": KnownAccelerator("NVIDIA GeForce RTX 4090", (8, 9), 24 * GIB, _SHEET.format("RTX 4090")),
    "T4-16GB": KnownAccelerator(
        "Tesla T4", (7, 5), 15360 * MIB, "its driver, with error correction: 15,360 MiB"
    ),
    "V100-16GB": KnownAccelerator("Tesla V100-SXM2-16GB", (7, 0), 16 * GIB, _SHEET.format("V100")),
    "V100-32GB": KnownAccelerator("Tesla V100-SXM2-32GB", (7, 0), 32 * GIB, _SHEET.format("V100")),
}
"""Accelerators by the name to ask for. AMD's aren't here: torch calls them "cuda" too, with capabilities that
mean another thing, so that rules for NVIDIA's would be applied to them."""

_SPEC = re.compile(
    r"(?:(?P<count>\d+)\s*[x×]\s*)?(?P<what>[^+]+?)(?:\s*\+\s*(?P<host>\d+(?:\.\d+)?)(?P<host_unit>[GT])i?B)?",
    re.IGNORECASE,
)
_CPU = re.compile(r"cpu-(?P<memory>\d+)Gi?B", re.IGNORECASE)
_CUSTOM = re.compile(r"(?P<memory>\d+)Gi?B-sm(?P<major>\d{1,2})(?P<minor>\d)", re.IGNORECASE)

FORMS = "a name such as 8xH100-80GB, cpu-64GB, or 8x80GB-sm90 for another one; +512GB after it tells the host's memory"


_SHORT = re.compile(r"[A-Za-z][A-Za-z0-9._]*-\d+GB")


def accelerator_fault(given: NamedAccelerator) -> str:
    """What is wrong with a plugin's accelerator, in words; "" where nothing is."""
    if not _SHORT.fullmatch(given.short) or given.short.lower().startswith("cpu-"):
        return f"{given.short!r} isn't a name such as MI300X-192GB"
    if given.memory <= 0 or not given.name.strip() or not given.source.strip():
        return "it needs a name, its bytes of memory, and who says so"
    return f"{given.short!r} is one of loadkit's own" if given.short.lower() in map(str.lower, KNOWN) else ""


def named_machine(
    spec: str, here: Machine, brought: Mapping[str, NamedAccelerator] | None = None
) -> Machine | Problem:
    """The machine that a short name stands for, its memory 0 where the name doesn't say; else a problem.

    Parameters:
        brought: plugins' accelerators by name; what stands for one of loadkit's own stays so.
        spec: "8xH100-80GB" ("8xH100" where one of that name is known), "cpu-64GB", or "8x80GB-sm90"; the
            host's memory may follow: "8xH100-80GB+1024GB".
        here: this machine, whose packages are assumed there.
    """
    found = _SPEC.fullmatch(spec.strip())
    if found is None or not found["what"] or found["count"] == "0":
        return _unknown(spec, "")
    host = float(found["host"] or 0) * (2**40 if (found["host_unit"] or "").upper() == "T" else GIB)
    like_here = Machine(packages=here.packages, cores=here.cores, platform="linux", memory=int(host))
    if cpu := _CPU.fullmatch(found["what"]):
        if found["count"] or host:
            return _unknown(
                spec, "; a machine without accelerators is written cpu-64GB, and --nodes counts them"
            )
        return msgspec.structs.replace(like_here, memory=int(cpu["memory"]) * GIB)
    if custom := _CUSTOM.fullmatch(found["what"]):
        name, memory = f"GPU of {custom['memory']} GB", int(custom["memory"]) * GIB
        capability = (int(custom["major"]), int(custom["minor"]))
    else:
        what = found["what"].lower()
        names = [name for name in KNOWN if what in (name.lower(), name.split("-")[0].lower())]
        if len(names) > 1:
            return _unknown(spec, f"; {' and '.join(names)} are known")
        if found["what"].lower().startswith("cpu"):
            return _unknown(spec, "; a machine without accelerators is written cpu-64GB")
        others = [a for n, a in (brought or {}).items() if what in (n.lower(), n.split("-")[0].lower())]
        if not names and len(others) > 1:
            return _unknown(spec, f"; {' and '.join(a.short for a in others)} are known")
        if not names and others:
            kind, capability = others[0].kind, others[0].capability
            accelerator = Accelerator(
                kind=kind, name=others[0].name, capability=capability, memory=others[0].memory
            )
            return msgspec.structs.replace(like_here, accelerators=(accelerator,) * int(found["count"] or 1))
        if not names:
            shorter = (name.split("-")[0] for name in KNOWN)
            return _unknown(spec, did_you_mean(found["what"], (*KNOWN, *shorter), cutoff=0.4))
        name, capability, memory, _ = KNOWN[names[0]]
    accelerator = Accelerator(kind="cuda", name=name, capability=capability, memory=memory)
    return msgspec.structs.replace(like_here, accelerators=(accelerator,) * int(found["count"] or 1))


def _unknown(spec: str, more: str) -> Problem:
    message = f"machine={spec!r} was asked for, which isn't a machine that loadkit knows{more}"
    return _problem("unknown-machine", message, f"give {FORMS}; known are {', '.join(KNOWN)}")
