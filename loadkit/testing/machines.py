"""Ready-made facts of machines and launches that aren't here, to plan for."""

from __future__ import annotations

from collections.abc import Mapping

from loadkit.facts.machine.engines import Engine
from loadkit.facts.machine.machine import Accelerator, Machine
from loadkit.facts.machine.topology import Topology

__all__ = ["MACHINES", "PACKAGES", "TOPOLOGIES", "gpus"]

GIB = 2**30

PACKAGES: Mapping[str, str] = {
    "accelerate": "1.15.0",
    "bitsandbytes": "0.50.2",
    "peft": "0.21.2",
    "torch": "2.13.0",
    "transformers": "5.23.0",
}
"""The distributions that these machines have."""


def gpus(name: str, capability: tuple[int, int], gib: int, count: int = 1, **packages: str) -> Machine:
    """A machine with NVIDIA GPUs of one kind: `gib` GiB each, a capability such as (8, 0) for sm80.

    Parameters:
        packages: further distributions to their versions, with underscores for dashes.
    """
    accelerator = Accelerator(kind="cuda", name=name, capability=capability, memory=gib * GIB)
    more = {key.replace("_", "-"): version for key, version in packages.items()}
    return Machine(
        accelerators=(accelerator,) * count, memory=256 * GIB, cores=16, packages={**PACKAGES, **more}
    )


MACHINES: Mapping[str, Machine] = {
    "CPU": Machine(memory=24 * GIB, cores=2, packages=dict(PACKAGES)),
    "T4": gpus("Tesla T4", (7, 5), 15),
    "A100": gpus("NVIDIA A100-SXM4-80GB", (8, 0), 80),
    "H100": gpus("NVIDIA H100 80GB HBM3", (9, 0), 80, flash_attn="2.8.3", flash_attn_3="3.0.0"),
    "8xH100": gpus("NVIDIA H100 80GB HBM3", (9, 0), 80, count=8, flash_attn="2.8.3"),
    "MPS": Machine(
        accelerators=(Accelerator(kind="mps", name="Apple silicon"),),
        memory=64 * GIB,
        platform="darwin",
        packages=dict(PACKAGES),
    ),
    "bare": Machine(memory=24 * GIB, cores=2),
}
"""Name to machine; "bare" has no package at all."""


def _ranks(engine: Engine) -> Topology:
    return Topology(world_size=8, rank=3, local_rank=3, local_world_size=8, engine=engine)


TOPOLOGIES: Mapping[str, Topology] = {
    "alone": Topology(),
    "8 ranks": _ranks("ddp"),
    "FSDP": _ranks("fsdp"),
    "FSDP2": _ranks("fsdp2"),
    "ZeRO-3": _ranks("zero3"),
}
"""Name to launch."""
