"""Targets that name single experts' layers: those of earlier releases, and of the files, that are stacks now.

A list of `gate_proj`, `up_proj` and `down_proj` for Qwen3-MoE, or of `w1`, `w2` and `w3` for Mixtral, means
the experts. PEFT 0.21 puts the stacks in their place (peft/utils/transformers_weight_conversion.py,
`_convert_peft_config_moe`), gives a pair the rank of both, and never reaches dense layers of these names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from loadkit import Adapter, Context, ModelClass, PassedOver, Plan, Problem
from loadkit_plugins.adapter.targets import renamed_way

__all__ = ["check_halves", "stacks_of_names"]

_problem = partial(Problem, "adapter", "adapter")

LED_BY: Mapping[str, Mapping[str, str]] = {
    "mixtral": {"w1": "gate_up_proj", "w2": "down_proj", "w3": "gate_up_proj"},
    "qwen2_moe": {"gate_proj": "gate_up_proj", "up_proj": "gate_up_proj", "down_proj": "down_proj"},
}
"""Ways of storing experts to the names of single ones' layers, each to the stack that it is part of."""


def stacks_of_names(
    options: dict[str, Any],
    context: Context,
    architecture: ModelClass,
    stacks: Sequence[str],
    *,
    as_peft: bool,
) -> list[PassedOver]:
    """Put the stacks in the place of names that mean single experts' layers.

    Parameters:
        options: the fields of a LoRA, changed.
        stacks: those that the model has, by the ends of their paths.
        as_peft: whether dense layers of these names stay as they are, as PEFT has it.

    Returns:
        What gave way.
    """
    names = _meant(options, context, architecture)
    parts = LED_BY.get(renamed_way(context), {})
    given = {parts[_last(name)] for name in names} - set(_halves(names, parts))
    found = [each for each in stacks if _last(each) in given]
    if not found:
        return []
    dense = _dense(context, architecture)
    taken = {name for name in names if parts[_last(name)] in given}
    stay = {name for name in taken if not as_peft and _ends(dense, name)}
    options["target_modules"] = [name for name in options["target_modules"] if name not in taken - stay]
    earlier = options.get("target_parameters") or []
    options["target_parameters"] = [*earlier, *(each for each in found if each not in earlier)]
    for end in (each for each in found if len(_parts_of(_last(each), parts)) > 1):
        for pattern, field in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha")):
            usual = options.get(field, 8)  # PEFT's own
            options[pattern] = {end: 2 * usual, **(options.get(pattern) or {})}
    lost = sorted(name for name in taken if as_peft and _ends(dense, name))
    reason = f"PEFT 0.21 takes the name for the experts', which are {', '.join(found)} here; dense layers of that name aren't adapted"
    return [PassedOver(name, reason) for name in lost]


def check_halves(context: Context, plan: Plan, adapter: Adapter) -> Iterator[Problem]:
    """Names of one half of a stack, where nothing else is called so."""
    parts = LED_BY.get(renamed_way(context), {})
    names = _meant(adapter.options, context, plan.model_class)
    dense = _dense(context, plan.model_class)
    for stack in _halves(names, parts):
        alone = [name for name in names if parts[_last(name)] == stack and not _ends(dense, name)]
        others = [name for name in _parts_of(stack, parts) if name not in map(_last, names)]
        if alone:
            yield _problem(
                "target-cant-be-adapted",
                f"target_modules has {alone[0]!r}, which is one half of the experts' {stack}",
                f"name {' and '.join(others)} too, to adapt the stack, or leave {alone[0]} out",
            )


def _meant(options: Mapping[str, Any], context: Context, architecture: ModelClass) -> list[str]:
    """The targets that mean single experts' layers: a bare name, or a path with experts in it."""
    given, parts = options.get("target_modules"), LED_BY.get(renamed_way(context), {})
    if not isinstance(given, list) or architecture.implementation != "transformers":
        return []
    names = [str(each) for each in given if _last(str(each)) in parts]
    return [name for name in names if "." not in name or "experts" in name.split(".")]


def _halves(names: Sequence[str], parts: Mapping[str, str]) -> list[str]:
    """The stacks of which only some parts are named."""
    last = {_last(name) for name in names}
    return [stack for stack in dict.fromkeys(parts[n] for n in last) if not last >= _parts_of(stack, parts)]


def _parts_of(stack: str, parts: Mapping[str, str]) -> set[str]:
    return {name for name, whole in parts.items() if whole == stack}


def _dense(context: Context, architecture: ModelClass) -> list[str]:
    return [weight.module for weight in context.weights(architecture) if weight.kind == "linear"]


def _ends(paths: Sequence[str], name: str) -> bool:
    return any(path == name or path.endswith(f".{name}") for path in paths)


def _last(path: str) -> str:
    return path.rpartition(".")[2]
