"""Targets that are no layers, and layers that can't train whole: what PEFT refuses, or leaves as it is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

from loadkit import Adapter, Context, Plan, Problem
from loadkit.plugins import some_of
from loadkit_plugins.adapter.fields import merged
from loadkit_plugins.adapter.targets import RENAMED, renamed_way

__all__ = ["check_modules"]

LAYERS = {"linear", "linear subclass", "embedding", "head"}
LAYER = re.compile(r"Linear|Embedding|Conv")
"""Kinds of weights, and names of classes, that PEFT may have a layer for."""

HEADS = ("lm_head", "score", "classifier")
"""What is never quantized."""

_problem = partial(Problem, "adapter", "adapter")


class NoLayer(NamedTuple):
    """What a target is instead of a layer.

    what: that, as a sentence about it.
    fix: what to do.
    module: whether it is a module; PEFT passes over names that no module has.
    """

    what: str
    fix: str
    module: bool = True


def check_modules(context: Context, plan: Plan, adapter: Adapter) -> Iterator[Problem]:
    """Targets that are no layers: stacks of experts and what holds them, routers, blocks, norms; and packed
    weights that were to train whole."""
    if plan.model_class.implementation != "transformers":
        return
    yield from _targets(context, plan, adapter)
    yield from _packed(context, plan, adapter)


def _targets(context: Context, plan: Plan, adapter: Adapter) -> Iterator[Problem]:
    asked = merged(context).by.get("target_modules")
    preferred = asked is not None and not asked.demanded
    for name in _listed(adapter, "target_modules") if adapter.peft_type == "LORA" else ():
        found = _no_layer(name, context, plan)
        if found is not None and (found.module or not preferred):  # of a preference PEFT takes what is there
            yield _problem(
                "target-cant-be-adapted", f"target_modules has {name!r}, and {found.what}", found.fix
            )


def _packed(context: Context, plan: Plan, adapter: Adapter) -> Iterator[Problem]:
    quantization = plan.quantization
    if quantization is None or quantization.prequantized:
        return
    weights, kept = context.weights(plan.model_class), (*quantization.skip_modules, *HEADS)
    for name in _listed(adapter, "modules_to_save"):
        paths = [
            w.home for w in weights if (w.kind == "linear" or w.multiplied) and f".{name}." in f".{w.home}."
        ]
        packed = [
            path for path in dict.fromkeys(paths) if not any(f".{each}." in f".{path}." for each in kept)
        ]
        if packed:
            yield _problem(
                "target-cant-be-adapted",
                f"modules_to_save has {name!r}, which is to train whole, and {some_of(sorted(packed))} is quantized: codes don't train",
                f"add skip_modules=[{name!r}], which keeps it as it is, or adapt it",
            )


def _no_layer(name: str, context: Context, plan: Plan) -> NoLayer | None:
    """What a target is that PEFT has no layer for; None for all that may be one."""
    last = name.rpartition(".")[2]
    modules = {n: f for family in context.library.families.values() for n, f in family.modules.items()}
    weights = context.weights(plan.model_class)
    kinds = {w.kind for w in weights if f".{w.module}".endswith(f".{name}") and w.kind != "experts"}
    if last in RENAMED.get(renamed_way(context), ()) or kinds & LAYERS:
        return None
    if kinds == {"norm"}:
        return NoLayer(
            "it is a norm, which PEFT has no layer for",
            "train it whole with modules_to_save, or leave it out",
        )
    owners = {n: set(f.members[last]) for n, f in modules.items() if last in f.members}
    classes = set().union(*owners.values())
    if classes and classes <= {"Parameter"}:
        stack = next((n for n in owners if last in modules[n].packable), "")
        fix = "lora_experts=True adapts the experts, lora_target_parameters one stack of them"
        what = f"it is a parameter of {stack}, a stack of experts, no module"
        return NoLayer(what, fix, module=False) if stack else None
    if not classes or not all(each in modules for each in classes):
        return None
    if any(modules[each].linear or LAYER.search(each) for each in classes):
        return None
    if any(modules[each].packable for each in classes):
        return NoLayer(
            f"it is a {min(classes)}, which holds stacks of experts",
            "lora_experts=True adapts the experts",
        )
    if not any(set(modules[each].members.values()) for each in classes):
        return None
    return NoLayer(
        f"it is a {min(classes)}, which PEFT has no layer for",
        'name the linear layers in it, or "all-linear"',
    )


def _listed(adapter: Adapter, field: str) -> list[str]:
    given = adapter.options.get(field)
    return [str(each) for each in given] if isinstance(given, list) else []
