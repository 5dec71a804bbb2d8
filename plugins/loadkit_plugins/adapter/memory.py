"""The tensors that adapters add, by the shapes of what they adapt."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from loadkit import Adapter, Context, Plan, Weight
from loadkit.plugins import ITEM_SIZES, AdapterFacts, Towers, is_projector
from loadkit_plugins.adapter.targets import BY_TYPE, EVERY_LINEAR, RENAMED, renamed_way

__all__ = ["estimate"]

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
    if targets is None and not options.get("target_parameters"):
        targets = context.peft_targets(adapter.peft_type, plan.model_class)
    if targets == BY_TYPE:
        targets = context.peft_targets(adapter.peft_type, plan.model_class) or "all-linear"
    if adapter.peft_type != "LORA" or (not targets and not options.get("target_parameters")):
        return None
    excluded = options.get("exclude_modules") or ()
    patterns = {**(options.get("rank_pattern") or {}), **(options.get("alpha_pattern") or {})}
    parameters = options.get("target_parameters") or ()
    of_modules = [each for each in patterns if each not in parameters]
    if of_modules or options.get("layers_to_transform") or isinstance(excluded, str):
        return None
    ranks: Mapping[str, int] = {**dict.fromkeys(parameters, int(options.get("r") or 8))}
    ranks = {**ranks, **(options.get("rank_pattern") or {})}
    dora = bool(options.get("use_dora"))
    towers = context.towers(plan.model_class) if adapter.exclude_vision else Towers()
    heads = HEADS if options.get("task_type") in ("SEQ_CLS", "TOKEN_CLS") else ()
    saved = (*(options.get("modules_to_save") or ()), *heads)
    apart = RENAMED.get(renamed_way(context), ()) if targets == "all-linear" else ()
    found, halves = list[Weight](), set[str]()
    for weight in weights:
        shapes: list[tuple[int, ...]] = []
        if _named(weight.module, saved):
            found.append(_weight(weight.name, weight.shape, plan.dtype, trains=adapter.trainable))
            continue
        rank = next((ranks[each] for each in parameters if _is(weight, each)), None)
        if rank is not None:
            shapes = _of_parameter(weight, rank, halves)
        elif (
            towers.holds(weight.module)
            or _named(weight.module, excluded)
            or ("projector" in adapter.frozen_parts and is_projector(weight.module))
        ):
            continue
        elif _targeted(weight, targets, apart):
            shapes = _of_matrix(weight.shape, int(options.get("r") or 8), dora)
        found += [_weight(weight.name, s, adapter.dtype, trains=adapter.trainable) for s in shapes]
    named = [each for each in parameters if any(_is(weight, each) for weight in weights)]
    return found if len(named) == len(parameters) else None  # files call some of them otherwise


def _is(weight: Weight, parameter: str) -> bool:
    """Whether a stored tensor is, or becomes a part of, one of the model's parameters."""
    if weight.multiplied:
        return weight.multiplied.rpartition(".")[2] == parameter.rpartition(".")[2]
    return f".{weight.name}".endswith(f".{parameter}")


def _of_parameter(weight: Weight, rank: int, halves: set[str]) -> list[tuple[int, ...]]:
    """PEFT's two matrices over a parameter: of a stack, with the ranks of all its experts beside each other.

    An expert that is stored alone brings its share; of a pair that is one parameter in the model, the second
    half shares the first one's inputs.
    """
    *experts, rows, columns = weight.shape
    if not experts and weight.units > 1:  # a stack stored flat
        experts, rows = [weight.units], rows // weight.units
    rank *= experts[0] if experts else 1
    if weight.multiplied and not experts:
        pair = f"{weight.module.rpartition('.')[0]} {weight.multiplied}"
        if pair in halves:
            return [(rows, rank)]
        halves.add(pair)
    return [(rank, columns), (rows, rank)]


def _of_matrix(shape: Sequence[int], rank: int, dora: bool) -> list[tuple[int, ...]]:
    rows, columns = shape
    return [(rank, columns), (rows, rank), *([(rows,)] if dora else [])]


def _targeted(weight: Weight, targets: Any, apart: Sequence[str]) -> bool:
    if not (weight.name.endswith(".weight") and len(weight.shape) == 2) or weight.kind == "experts":
        return False
    linear = weight.kind in ("linear", "linear subclass")
    if targets == "all-linear":
        return linear and weight.module.rpartition(".")[2] not in apart
    listed = [targets] if isinstance(targets, str) else list(targets or ())
    if EVERY_LINEAR in listed and linear:
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
