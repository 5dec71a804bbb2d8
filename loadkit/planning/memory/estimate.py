"""How much memory a plan takes, from the headers of the weight files alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from loadkit.facts.context import Context
from loadkit.facts.library.weight_roles import Weight
from loadkit.hooks import hookspecs as hooks
from loadkit.hooks.manager import PluginManager
from loadkit.planning.memory.optimizers import optimizer_bytes
from loadkit.planning.memory.per_rank import share
from loadkit.schema.dtypes import ITEM_SIZES
from loadkit.schema.plans import Memory, Plan
from loadkit.schema.values import Packed

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
    """What the loaded model, its gradients and its optimizer will take.

    Parameters:
        context: the facts, with the headers.
        manager: the plugins: the one that quantizes tells what that makes of the weights, the one that
            attaches adapters their size.

    Returns:
        Bytes by part; None where the checkpoint's files have no headers (pickles).
    """
    weights = context.weights(plan.model_class)
    if not weights:
        return None
    about: Any = {"context": context, "plan": plan, "weights": weights}
    packed: Mapping[str, Packed] = {}
    stays_quantized = plan.quantization is not None and not (
        plan.adapters is not None and plan.adapters.dequantize
    )
    if stays_quantized:
        packed = manager.first(hooks.loadkit_estimate_weights, **about) or {}
    kept = [w for w in weights if w.name not in packed]
    dtypes = [(w, _dtype(w, plan, context)) for w in kept]
    by_dtype: dict[str, int] = {}
    for weight, dtype in dtypes:
        by_dtype[dtype] = by_dtype.get(dtype, 0) + _bytes(weight, dtype)
    adapters: Sequence[Weight] | None = ()
    if plan.adapters is not None and not plan.adapters.merge:
        adapters = manager.first(hooks.loadkit_estimate_adapters, **about)
    where, room = _room(context, plan)
    unknown = ("adapters",) if adapters is None else ()
    adapters = adapters or ()
    trained = _trained(plan, dtypes, adapters)
    optim = str(context.request.value("optim", "adamw_torch"))
    memory = Memory(
        weights=dict(sorted(by_dtype.items())),
        quantized=sum(p.data for p in packed.values()),
        constants=sum(p.constants for p in packed.values()),
        unquantized=_unquantized(dtypes) if stays_quantized else {},
        adapters=sum(w.nbytes for w in adapters),
        gradients=sum(w.nbytes for w in trained),
        optimizer=optimizer_bytes(trained, optim) if trained else 0,
        optim=optim if trained else "",
        unknown=unknown,
        room=room,
        where=where,
    )
    in_memory = [(weight, dtype, _bytes(weight, dtype)) for weight, dtype in dtypes]
    return msgspec.structs.replace(memory, per_rank=share(context, plan, memory, in_memory, packed))


def _dtype(weight: Weight, plan: Plan, context: Context) -> str:
    """The dtype that a weight has once it is loaded and prepared."""
    if weight.dtype not in ITEM_SIZES:
        return weight.dtype
    facts = context.library.class_facts(plan.model_class.model_class)
    strict = facts.keep_in_fp32_modules_strict if facts and plan.dtype in ("float16", "bfloat16") else ()
    half = facts.keep_in_fp32_modules if facts and plan.dtype == "float16" else ()
    if any(re.search(pattern.replace("*", ".*"), weight.name) for pattern in (*strict, *half)):
        return "float32"  # as transformers' loader reads these patterns
    upcast = (
        plan.preparation.kbit
        and plan.preparation.float32_norms
        and weight.kind == "norm"
        and not weight.module.endswith(plan.preparation.norms_left)
    )
    return "float32" if upcast else plan.dtype


def _bytes(weight: Weight, dtype: str) -> int:
    return weight.count * ITEM_SIZES.get(dtype, 0) if weight.dtype in ITEM_SIZES else weight.nbytes


def _trained(
    plan: Plan, dtypes: Sequence[tuple[Weight, str]], adapters: Sequence[Weight]
) -> Sequence[Weight]:
    if not plan.preparation.training or (
        plan.adapters is not None and plan.adapters.merge and plan.preparation.kbit
    ):
        return ()
    if plan.adapters is not None and not plan.adapters.merge:
        return [w for w in adapters if w.kind != "other"]
    if plan.quantization is not None:
        return ()
    return [
        msgspec.structs.replace(w, dtype=dtype, nbytes=_bytes(w, dtype))
        for w, dtype in dtypes
        if w.dtype in ITEM_SIZES
    ]


def _unquantized(dtypes: Sequence[tuple[Weight, str]]) -> dict[str, int]:
    """Bytes that stay as they are, by reason, largest first."""
    found: dict[str, int] = {}
    for weight, dtype in dtypes:
        linear = weight.kind == "linear" and len(weight.shape) > 1
        reason = "skipped" if linear else REASONS.get(weight.kind, "other")
        found[reason] = found.get(reason, 0) + _bytes(weight, dtype)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _room(context: Context, plan: Plan) -> tuple[str, int]:
    """Where the weights go, and the bytes there; 0 where that isn't known or an engine spreads them."""
    machine, device_map = context.machine, plan.placement.device_map
    accelerators = [a for a in machine.accelerators if a.memory]
    if plan.placement.max_memory:
        return "", 0
    if device_map is None:  # the engine places: on the device of the local rank
        local = context.topology.local_rank
        if machine.kind == "cpu":
            return "this machine", machine.memory
        return (
            (accelerators[local].name, accelerators[local].memory) if local < len(accelerators) else ("", 0)
        )
    if plan.placement.spreads:
        return "this machine", machine.memory + sum(a.memory for a in accelerators)
    devices = {device_map} if isinstance(device_map, str) else set(device_map.values())
    if devices == {"cpu"} or (machine.kind == "mps" and len(devices) == 1):
        return "this machine", machine.memory
    if len(devices) == 1 and accelerators:
        device = str(devices.pop()).removeprefix("cuda:").removeprefix("cuda") or "0"
        index = int(device) if device.isdigit() else 0
        if index < len(accelerators):
            return accelerators[index].name, accelerators[index].memory
    return "", 0
