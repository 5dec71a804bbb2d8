"""What one of several processes holds: its share of what an engine divides, and what loading takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from loadkit.facts.context import Context
from loadkit.facts.library.tp_plan import is_split
from loadkit.facts.library.weight_roles import Weight
from loadkit.schema.memory import Memory, RankMemory
from loadkit.schema.plans import Plan
from loadkit.schema.quantized_weights import Packed

__all__ = ["Kept", "share"]


class Kept(NamedTuple):
    """A weight that isn't quantized, with its dtype and its bytes in memory."""

    weight: Weight
    dtype: str
    nbytes: int


def share(
    context: Context, plan: Plan, memory: Memory, kept: Sequence[Kept], packed: Mapping[str, Packed]
) -> RankMemory | None:
    """Divide an estimate of it all among the processes; None for a single process without an engine."""
    topology = context.topology
    if not topology.distributed and topology.engine == "none":
        return None
    world, splits = topology.world_size, topology.tp_size if topology.splits_layers else 1
    shards = world // splits if topology.shards_parameters else 1
    rules = context.tp_plan(plan.model_class) if splits > 1 else {}
    towers = context.towers(plan.model_class)
    split = sum(count for weight, _, count in kept if is_split(weight, rules, towers)) if rules else 0
    held = memory.model - split + split // splits
    whole = _stays_whole(context, memory, packed)
    in_full = memory.gradients if not memory.adapters else 0
    ratio = held / memory.model if in_full and memory.model else 1.0
    states = world if topology.engine in ("zero1", "zero2") else shards
    weights = whole + -(-(held - whole) // shards)
    # A quantized base goes to each rank's device whole, and is divided there (transformers 5.23: the
    # quantizers' `update_device_map`).
    placed = topology.shards_parameters and plan.quantized is not None
    each = _own_copy(context, plan, memory, kept, weights)
    return RankMemory(
        shared=_shared(world, splits, shards, topology.engine),
        device=context.machine.accelerators[0].name if context.machine.accelerators else "the CPU",
        weights=weights,
        gradients=round(memory.gradients * ratio / (world if topology.engine == "zero2" else shards)),
        optimizer=round(memory.optimizer * ratio / states),
        loading=memory.model - memory.adapters if placed else weights,
        host_shared=context.checkpoint.weight_bytes,
        host_own=each * topology.local_world_size,
        processes=topology.local_world_size,
        how=_how(context, plan, placed, bool(each)),
    )


def _stays_whole(context: Context, memory: Memory, packed: Mapping[str, Packed]) -> int:
    """What engines that shard parameters leave on every rank: quant states, which aren't parameters, and what
    is packed as integers, under FSDP2 (accelerate 1.15: `fsdp2_prepare_model`)."""
    if not context.topology.shards_parameters:
        return 0
    integers = sum(p.data for p in packed.values() if "int" in p.dtype)
    return memory.constants + (integers if context.topology.engine == "fsdp2" else 0)


def _own_copy(context: Context, plan: Plan, memory: Memory, kept: Sequence[Kept], weights: int) -> int:
    """Host memory that one process takes for itself while loading: what isn't a view of the mapped file."""
    topology = context.topology
    on_host = context.machine.kind == "cpu"
    cast = sum(count for weight, dtype, count in kept if weight.dtype != dtype)
    if topology.splits_layers or (topology.engine == "zero3" and plan.quantized is None):
        return weights if on_host else 0
    if on_host:
        written = plan.preparation.training and plan.adapters is None and plan.quantized is None
        return memory.model if written else cast + memory.quantized + memory.constants + memory.adapters
    return cast if topology.shards_parameters and plan.quantized is None else 0


def _shared(world: int, splits: int, shards: int, engine: str) -> str:
    """Which share of what each process holds, in words."""
    parts = {
        f"1/{splits} of the layers that are split, the rest whole": splits > 1,
        f"1/{shards} of weights, gradients and optimizer": shards > 1,
        f"weights and gradients whole, 1/{world} of the optimizer": engine == "zero1",
        f"weights whole, 1/{world} of gradients and optimizer": engine == "zero2",
    }
    return "; of those ".join(part for part, holds in parts.items() if holds) or "everything whole"


def _how(context: Context, plan: Plan, placed: bool, own: bool) -> str:
    """How the ranks load, in a sentence."""
    topology = context.topology
    if topology.splits_layers:
        return "each rank reads its parts of the same mapped files"
    if topology.engine == "zero3" and plan.quantized is None:
        return "rank 0 reads the files, and DeepSpeed divides each parameter as it is loaded"
    if placed:
        return "every rank puts the whole quantized base on its device, then the engine divides it"
    copies = ", and makes its own copy of what is cast, quantized or written" if own else ""
    once = "; the engine then takes rank 0's, though transformers 5.23 reads them on every rank"
    return f"every rank maps the same files{copies}{once if topology.reads_once else ''}"
