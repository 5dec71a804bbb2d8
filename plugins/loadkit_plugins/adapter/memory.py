"""The tensors that adapters add, by the shapes of what they adapt."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from loadkit import Adapter, Context, Plan, Weight
from loadkit.plugins import ITEM_SIZES, AdapterFacts, Towers, is_projector
from loadkit_plugins.adapter.targets import BY_TYPE, EVERY_LINEAR

__all__ = ["estimate"]

STACKED = {
    "mixtral": ("gate", "w1", "w2", "w3"),
    "qwen2_moe": ("gate", "gate_proj", "up_proj", "down_proj"),
}
"""Ways of storing experts whose stacked weights PEFT 0.21 adapts where all linear layers are asked for, to
the names that it takes for theirs: dense layers and shared experts of these names are left out
(peft/utils/transformers_weight_conversion.py, `_convert_peft_config_moe`; a model of type qwen2_moe itself
isn't in its table)."""

PAIRED = (".w1", ".w3", ".gate_proj", ".up_proj")
"""Experts' weights that transformers stacks in pairs; PEFT 0.21 adapts a pair as one, with twice the rank."""

HEADS = ("score", "classifier")
"""Heads that PEFT trains and saves whole for classification."""


def estimate(context: Context, plan: Plan, weights: Sequence[Weight]) -> Sequence[Weight] | None:
    """A `Weight` for each tensor of every adapter; None where only PEFT can know its size."""
    if plan.adapters is None:
        return None
    weights = list(_dense(weights, plan))
    found: list[Weight] = []
    for adapter in plan.adapters.members:
        if adapter.source:
            facts = context.beside.adapters.get(adapter.name)
            if facts is None or not facts.tensors:
                return None
            found += _existing(adapter, facts)
        else:
            made = _new(adapter, plan, weights, context)
            if made is None:
                return None
            found += made
    return found


def _dense(weights: Sequence[Weight], plan: Plan) -> Iterator[Weight]:
    """The weights, those of GPTQ and AWQ in the shape that a layer has for them: `qweight` holds several
    values in an int32, along one side or the other, and `scales` has a column for each output."""
    outputs = {w.module: w.shape[-1] for w in weights if w.name.endswith(".scales") and w.shape}
    for weight in weights:
        out = outputs.get(weight.module) if weight.name.endswith(".qweight") else None
        if out is None or plan.quantization is None or not plan.quantization.bits:
            yield weight
            continue
        rows, columns = weight.shape
        inputs = round(rows * 32 / plan.quantization.bits) if columns == out else rows
        name = weight.name.replace(".qweight", ".weight")
        yield msgspec.structs.replace(weight, name=name, shape=(out, inputs))


def _existing(adapter: Adapter, facts: AdapterFacts) -> Iterator[Weight]:
    for name, header in facts.tensors.items():
        yield _weight(name, header.shape, adapter.dtype, trains=adapter.trainable)


def _new(adapter: Adapter, plan: Plan, weights: Sequence[Weight], context: Context) -> list[Weight] | None:
    """LoRA's two matrices for each target, DoRA's magnitudes, and copies of the modules that train whole."""
    options = adapter.options
    targets = options.get("target_modules")
    if (
        targets == BY_TYPE
        or adapter.peft_type != "LORA"
        or (not targets and not options.get("target_parameters"))
    ):
        return None
    excluded = options.get("exclude_modules") or ()
    if options.get("rank_pattern") or options.get("layers_to_transform") or isinstance(excluded, str):
        return None
    model_type = context.checkpoint.model_type
    way = model_type if model_type == "mixtral" else context.library.conversions.get(model_type, "")
    stacked = STACKED.get(way, ())
    rank = int(options.get("r") or 8)
    towers = context.towers(plan.model_class) if adapter.exclude_vision else Towers()
    heads = HEADS if options.get("task_type") in ("SEQ_CLS", "TOKEN_CLS") else ()
    saved = (*(options.get("modules_to_save") or ()), *heads)
    found = []
    for weight in weights:
        if _named(weight.module, saved):
            found.append(_weight(weight.name, weight.shape, plan.dtype, trains=adapter.trainable))
        elif (
            towers.holds(weight.module)
            or _named(weight.module, excluded)
            or ("projector" in adapter.frozen_parts and is_projector(weight.module))
        ):
            continue
        elif _targeted(weight, targets, stacked):
            shapes = _shapes(weight, rank, bool(options.get("use_dora")))
            found += [_weight(weight.name, s, adapter.dtype, trains=adapter.trainable) for s in shapes]
    return found


def _shapes(weight: Weight, rank: int, dora: bool) -> list[tuple[int, ...]]:
    *experts, rows, columns = weight.shape
    if experts:  # one matrix for all of them, a pair with twice the rank
        rank *= experts[0] * (2 if weight.name.endswith("gate_up_proj") else 1)
    elif weight.kind == "experts" and weight.module.endswith(PAIRED):
        rows *= 2
    return [(rank, columns), (rows, rank), *([(rows,)] if dora else [])]


def _targeted(weight: Weight, targets: Any, stacked: Sequence[str]) -> bool:
    matrix = weight.name.endswith(".weight") and len(weight.shape) == 2
    if targets == "all-linear":
        router = weight.kind == "other" and weight.module.endswith(".gate") and matrix
        experts = weight.kind == "experts" and (matrix or weight.name.endswith("_proj"))
        if stacked and (router or experts):
            return True
        of_experts = weight.module.rpartition(".")[2] in stacked
        return weight.kind in ("linear", "linear subclass") and matrix and not of_experts
    if not matrix:
        return False
    listed = [targets] if isinstance(targets, str) else list(targets or ())
    if EVERY_LINEAR in listed and weight.kind in ("linear", "linear subclass"):
        return True
    if isinstance(targets, str):
        return re.fullmatch(targets, weight.module) is not None
    return _named(weight.module, targets or ())


def _named(module: str, ends: Sequence[str]) -> bool:
    return any(module == end or module.endswith(f".{end}") for end in ends)


def _weight(name: str, shape: tuple[int, ...], dtype: str, *, trains: bool) -> Weight:
    return Weight(
        name=name,
        module=name.rpartition(".")[0],
        shape=shape,
        dtype=dtype,
        nbytes=math.prod(shape) * ITEM_SIZES.get(dtype, 4),
        kind="linear" if trains else "other",
    )
