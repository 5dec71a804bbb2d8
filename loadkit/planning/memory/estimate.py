"""How much memory a plan takes, from the headers of the weight files alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from loadkit.facts.context import Context
from loadkit.facts.library.weight_roles import Weight
from loadkit.hooks import hookspecs as hooks
from loadkit.hooks.manager import PluginManager
from loadkit.planning.memory.optimizers import ADAMW, optimizer_bytes
from loadkit.planning.memory.per_rank import Kept, share
from loadkit.planning.memory.trained_weights import trains
from loadkit.schema.dtypes import ITEM_SIZES
from loadkit.schema.memory import Memory
from loadkit.schema.plans import Plan
from loadkit.schema.quantized_weights import Packed

__all__ = ["estimate"]

REASONS: Mapping[str, str] = {
    "embedding": "embeddings",
    "head": "head",
    "norm": "norms",
    "experts": "fused experts",
    "linear subclass": "subclasses of Linear",
}
"""A weight's kind to the reason why it stays unquantized."""


def estimate(context: Context, plan: Plan, manager: PluginManager) -> Memory | None:
    """What the loaded model, its gradients and its optimizer will take; None without headers (pickles)."""
    weights = context.weights(plan.model_class)
    if not weights:
        return None
    about: Any = {"context": context, "plan": plan, "weights": weights}
    packed: Mapping[str, Packed] = {}
    stays_quantized = plan.quantized is not None and not (plan.adapters and plan.adapters.dequantize)
    turned_back: Mapping[str, Packed] = {}
    if stays_quantized:
        made: Mapping[str, Packed] = manager.first(hooks.loadkit_estimate_weights, **about) or {}
        packed = {name: each for name, each in made.items() if not each.decoded}
        turned_back = {name: each for name, each in made.items() if each.decoded}
    elif plan.quantization is not None and not plan.quantization.packed:
        turned_back = manager.first(hooks.loadkit_estimate_weights, **about) or {}
    left = (weight for weight in weights if weight.name not in packed)
    kept = [
        _turned_back(w, turned_back[w.name]) if w.name in turned_back else _kept(w, plan, context)
        for w in left
    ]
    by_dtype: Counter[str] = Counter()
    for _, dtype, nbytes in kept:
        by_dtype[dtype] += nbytes
    adapters: Sequence[Weight] | None = ()
    if plan.adapters is not None and not plan.adapters.merge:
        adapters = manager.first(hooks.loadkit_estimate_adapters, **about)
    where, room = _room(context, plan)
    trained = _trained(plan, context, kept, adapters or ())
    optim = str(context.request.value("optim", "adamw_torch"))
    _, rule = manager.optimizers.found.get(optim, ("", ADAMW))
    quantized = _quantized(plan, weights, packed)
    memory = Memory(
        weights=dict(sorted(by_dtype.items())),
        quantized=sum(p.data for p in packed.values()),
        constants=sum(p.constants for p in packed.values()),
        unquantized=_unquantized(kept) if stays_quantized else {},
        adapters=sum(w.nbytes for w in adapters or ()),
        gradients=sum(w.nbytes for w in trained),
        optimizer=optimizer_bytes(trained, rule) if trained else 0,
        optim=optim if trained else "",
        unknown=("adapters",) if adapters is None else (),
        room=room,
        where=where,
        trainable=sum(w.count for w in trained),
        parameters=sum(w.count for w in (*(k.weight for k in kept if k.nbytes), *(adapters or ())))
        + quantized,
        quantized_parameters=quantized,
    )
    return msgspec.structs.replace(memory, per_rank=share(context, plan, memory, kept, packed))


def _quantized(plan: Plan, weights: Sequence[Weight], packed: Mapping[str, Packed]) -> int:
    """How many values are quantized: stored ones by the bits that they take."""
    stored = plan.quantization.bits if plan.quantization is not None and plan.quantization.prequantized else 0
    return sum(
        int(packed[w.name].data * 8 / stored) if stored else w.count * bool(packed[w.name].data)
        for w in weights
        if w.name in packed
    )


def _turned_back(weight: Weight, made: Packed) -> Kept:
    """A stored weight of another dtype, as what transformers turns it back into; scales become nothing."""
    count = made.data // ITEM_SIZES.get(made.dtype, 1)
    shape = weight.shape if weight.count == count or not weight.count else _widened(weight, count)
    return Kept(msgspec.structs.replace(weight, shape=shape), made.dtype, made.data)


def _widened(weight: Weight, count: int) -> tuple[int, ...]:
    """The shape of a weight that is stored several to a value of the file: its last side is longer."""
    others = weight.count // weight.shape[-1] if weight.shape else 1
    return (*weight.shape[:-1], count // others)


def _kept(weight: Weight, plan: Plan, context: Context) -> Kept:
    dtype = _dtype(weight, plan, context)
    cast = weight.dtype in ITEM_SIZES
    return Kept(weight, dtype, weight.count * ITEM_SIZES.get(dtype, 0) if cast else weight.nbytes)


def _dtype(weight: Weight, plan: Plan, context: Context) -> str:
    """The dtype that a weight has once it is loaded and prepared."""
    if weight.dtype not in ITEM_SIZES:
        return weight.dtype
    facts = context.library.class_facts(plan.model_class.model_class)
    strict = facts.keep_in_fp32_modules_strict if facts and plan.dtype in ("float16", "bfloat16") else ()
    half = facts.keep_in_fp32_modules if facts and plan.dtype == "float16" else ()
    if any(re.search(pattern.replace("*", ".*"), weight.name) for pattern in (*strict, *half)):
        return "float32"  # as transformers' loader reads these patterns
    if plan.preparation.trainable_dtype and plan.adapters is None and trains(weight, plan, context):
        return plan.preparation.trainable_dtype
    upcast = (
        plan.preparation.kbit
        and plan.preparation.float32_norms
        and weight.kind == "norm"
        and not weight.module.endswith(plan.preparation.norms_left)
    )
    return "float32" if upcast else plan.dtype


def _trained(
    plan: Plan, context: Context, kept: Sequence[Kept], adapters: Sequence[Weight]
) -> Sequence[Weight]:
    if not plan.preparation.training:
        return ()
    if plan.adapters is not None and not plan.adapters.merge:
        return [w for w in adapters if w.kind != "other"]
    if plan.quantized is not None or (plan.adapters is not None and plan.preparation.kbit):
        return ()
    floats = (k for k in kept if k.dtype in ITEM_SIZES and k.nbytes and trains(k.weight, plan, context))
    return [msgspec.structs.replace(k.weight, dtype=k.dtype, nbytes=k.nbytes) for k in floats]


def _unquantized(kept: Sequence[Kept]) -> dict[str, int]:
    """Bytes that stay as they are, by reason, largest first."""
    found: Counter[str] = Counter()
    for weight, _, nbytes in kept:
        linear = weight.kind == "linear" and len(weight.shape) > 1
        found["skipped" if linear else REASONS.get(weight.kind, "other")] += nbytes
    found += Counter()  # scales that are gone count for nothing
    return dict(found.most_common())


def _room(context: Context, plan: Plan) -> tuple[str, int]:
    """Where the weights go, and the bytes there; 0 where that isn't known or an engine spreads them."""
    machine, device_map = context.machine, plan.placement.device_map
    rooms = [(a.name, a.memory) for a in machine.accelerators if a.memory]
    if plan.placement.max_memory:
        return "", 0
    if plan.placement.spreads:
        return "this machine", machine.memory + sum(memory for _, memory in rooms)
    if device_map is None:  # the engine places: on the device of the local rank
        index, on_host = context.topology.local_rank, machine.kind == "cpu"
    else:
        devices = {device_map} if isinstance(device_map, str) else set(device_map.values())
        if len(devices) != 1:
            return "", 0
        device = str(devices.pop())
        number = device.removeprefix("cuda:").removeprefix("cuda")
        index = int(number) if number.isdigit() else 0
        on_host = device == "cpu" or machine.kind == "mps"
    if on_host:
        return "this machine", machine.memory
    return rooms[index] if index < len(rooms) else ("", 0)
