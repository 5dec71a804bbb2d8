"""How many processes load at once, and who places the weights."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal

import msgspec

__all__ = ["Topology", "read_topology"]

Engine = Literal["none", "ddp", "fsdp", "fsdp2", "zero1", "zero2", "zero3", "tensor-parallel"]

_TRUE = {"1", "true", "yes", "y", "on", "t"}


class Topology(msgspec.Struct, frozen=True, kw_only=True):
    """The processes of one launch.

    Parameters:
        world_size: how many processes there are on all nodes.
        rank: this one's number among all.
        local_rank: this one's number on its node; it names the accelerator, the global rank doesn't.
        local_world_size: how many processes this node has.
        engine: what spreads the model over them.
    """

    world_size: int = 1
    rank: int = 0
    local_rank: int = 0
    local_world_size: int = 1
    engine: Engine = "none"

    @property
    def distributed(self) -> bool:
        """Whether more than one process was launched."""
        return self.world_size > 1

    @property
    def engine_places(self) -> bool:
        """Whether the engine shards the weights itself, so that no device map may be given."""
        return self.engine in ("fsdp", "fsdp2", "zero3", "tensor-parallel")


def read_topology(environ: Mapping[str, str] | None = None) -> Topology:
    """Read what torchrun, accelerate and SLURM set in the environment.

    Parameters:
        environ: the environment; the process's own by default.

    Returns:
        The topology; a single process where no launcher is seen.
    """
    env = os.environ if environ is None else environ
    world = _number(
        env,
        "WORLD_SIZE",
        "SLURM_NTASKS" if "SLURM_PROCID" in env and "SLURM_STEP_ID" in env else "",
        default=1,
    )
    rank = _number(env, "RANK", "SLURM_PROCID" if world > 1 else "", default=0)
    local_world = _number(
        env, "LOCAL_WORLD_SIZE", "SLURM_NTASKS_PER_NODE" if world > 1 else "", default=world
    )
    local = _number(
        env, "LOCAL_RANK", "SLURM_LOCALID" if world > 1 else "", default=rank % max(local_world, 1)
    )
    return Topology(
        world_size=world,
        rank=rank,
        local_rank=local,
        local_world_size=local_world,
        engine=_engine(env, world),
    )


def _engine(env: Mapping[str, str], world_size: int) -> Engine:
    if _true(env, "ACCELERATE_USE_DEEPSPEED"):
        stage = env.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
        stages: dict[str, Engine] = {"1": "zero1", "2": "zero2", "3": "zero3"}
        return stages.get(stage, "ddp")
    if _true(env, "ACCELERATE_USE_FSDP"):
        return "fsdp2" if env.get("FSDP_VERSION", "1") == "2" else "fsdp"
    return "ddp" if world_size > 1 else "none"


def _true(env: Mapping[str, str], name: str) -> bool:
    return env.get(name, "").strip().lower() in _TRUE


def _number(env: Mapping[str, str], *names: str, default: int) -> int:
    for name in names:
        text = env.get(name, "").strip()
        if text.isdigit():
            return int(text)
    return default
