"""Machines that aren't here, by name: "8xH100-80GB", "cpu-64GB", "8x80GB-sm90"."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from loadkit.errors import Problem
from loadkit.facts.machine.machine import Accelerator, Machine
from loadkit.text.suggest import nearest_name

__all__ = ["KNOWN", "named_machine"]

GIB, MIB = 2**30, 2**20

CAPABILITIES = "developer.nvidia.com/cuda-gpus"
"""NVIDIA's table of compute capabilities, which all of `KNOWN` are from."""


class KnownAccelerator(msgspec.Struct, frozen=True, kw_only=True):
    """An accelerator as its maker describes it.

    Parameters:
        name: what its driver calls it.
        capability: CUDA compute capability.
        memory: bytes, as the driver counts them where `source` says so, else those of the data sheet.
        source: where the memory is from.
    """

    name: str
    capability: tuple[int, int]
    memory: int
    source: str


def _known(name: str, capability: tuple[int, int], memory: int, source: str) -> KnownAccelerator:
    return KnownAccelerator(name=name, capability=capability, memory=memory, source=source)


_SHEET = "data sheet of the {} (NVIDIA), GB counted as GiB"

KNOWN: Mapping[str, KnownAccelerator] = {
    "A10G-24GB": _known("NVIDIA A10G", (8, 6), 24 * GIB, _SHEET.format("A10G in AWS's G5 instances")),
    "A100-40GB": _known("NVIDIA A100-SXM4-40GB", (8, 0), 40 * GIB, _SHEET.format("A100")),
    "A100-80GB": _known("NVIDIA A100-SXM4-80GB", (8, 0), 80 * GIB, _SHEET.format("A100")),
    "B200-180GB": _known("NVIDIA B200", (10, 0), 180 * GIB, _SHEET.format("DGX B200: 1,440 GB over 8")),
    "H100-80GB": _known("NVIDIA H100 80GB HBM3", (9, 0), 80 * GIB, _SHEET.format("H100")),
    "H200-141GB": _known("NVIDIA H200", (9, 0), 141 * 10**9, "data sheet of the H200 (NVIDIA): 141 GB"),
    "L4-24GB": _known("NVIDIA L4", (8, 9), 24 * GIB, _SHEET.format("L4")),
    "L40S-48GB": _known("NVIDIA L40S", (8, 9), 48 * GIB, _SHEET.format("L40S")),
    "RTX3090-24GB": _known("NVIDIA GeForce RTX 3090", (8, 6), 24 * GIB, _SHEET.format("RTX 3090")),
    "RTX4090-24GB": _known("NVIDIA GeForce RTX 4090", (8, 9), 24 * GIB, _SHEET.format("RTX 4090")),
    "T4-16GB": _known("Tesla T4", (7, 5), 15360 * MIB, "its driver, with error correction: 15,360 MiB"),
    "V100-16GB": _known("Tesla V100-SXM2-16GB", (7, 0), 16 * GIB, _SHEET.format("V100")),
    "V100-32GB": _known("Tesla V100-SXM2-32GB", (7, 0), 32 * GIB, _SHEET.format("V100")),
}
"""Accelerators by the name to ask for. AMD's aren't here: torch calls them "cuda" too, with capabilities that mean another thing,
so that rules for NVIDIA's would be applied to them."""

_SPEC = re.compile(
    r"(?:(?P<count>\d+)\s*[x×]\s*)?(?P<what>[^+]+?)(?:\s*\+\s*(?P<host>\d+(?:\.\d+)?)(?P<host_unit>[GT])i?B)?",
    re.IGNORECASE,
)
_CPU = re.compile(r"cpu-(?P<memory>\d+)Gi?B", re.IGNORECASE)
_CUSTOM = re.compile(r"(?P<memory>\d+)Gi?B-sm(?P<major>\d{1,2})(?P<minor>\d)", re.IGNORECASE)

FORMS = "a name such as 8xH100-80GB, cpu-64GB, or 8x80GB-sm90 for another one; +512GB after it tells the host's memory"


def named_machine(spec: str, here: Machine) -> Machine | Problem:
    """The machine that a short name stands for.

    Parameters:
        spec: "8xH100-80GB" (of a known accelerator, "8xH100" where there is one of that name), "cpu-64GB", or "8x80GB-sm90"; the
            host's memory may follow: "8xH100-80GB+1024GB".
        here: this machine, whose packages are assumed there.

    Returns:
        The machine, whose memory is 0 where it wasn't told; a problem with the nearest name for an unknown one.
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
        capability = (int(custom["major"]), int(custom["minor"]))
        accelerator = Accelerator(
            kind="cuda",
            name=f"GPU of {custom['memory']} GB",
            capability=capability,
            memory=int(custom["memory"]) * GIB,
        )
    else:
        names = [
            name for name in KNOWN if found["what"].lower() in (name.lower(), name.split("-")[0].lower())
        ]
        if len(names) != 1:
            return _unknown(spec, _nearest(found["what"], names))
        known = KNOWN[names[0]]
        accelerator = Accelerator(
            kind="cuda", name=known.name, capability=known.capability, memory=known.memory
        )
    return msgspec.structs.replace(like_here, accelerators=(accelerator,) * int(found["count"] or 1))


def _nearest(what: str, several: list[str]) -> str:
    if several:
        return f"; {' and '.join(several)} are known"
    near = nearest_name(what, (*KNOWN, *(name.split("-")[0] for name in KNOWN)), cutoff=0.4)
    return f" (did you mean {near!r}?)" if near else ""


def _unknown(spec: str, more: str) -> Problem:
    return Problem(
        "machine",
        "loadkit",
        "unknown-machine",
        f"machine={spec!r} was asked for, which isn't a machine that loadkit knows{more}",
        f"give {FORMS}; known are {', '.join(KNOWN)}",
    )
