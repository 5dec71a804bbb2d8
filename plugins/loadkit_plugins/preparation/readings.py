"""What a loaded model shows of its preparation for training."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import Any

from loadkit import Plan, Reading
from loadkit.plugins import base_of, plain
from loadkit_plugins.preparation.checkpointing import BY_TRANSFORMERS
from loadkit_plugins.preparation.norms import norms

__all__ = ["readings"]

_reading = partial(Reading, stage="preparation")

LAYER = "GradientCheckpointingLayer"
"""transformers' class for what is repeated."""


def readings(plan: Plan, model: Any) -> Iterator[Reading]:
    """Mode, checkpointing and how it is done, gradients of the embeddings, and dtypes of norms and what
    trains."""
    preparation = plan.preparation
    yield _reading(
        names=("training",),
        where="model.training",
        planned=preparation.training,
        effective=bool(model.training),
        code="training-mode",
    )
    on = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    yield _reading(
        names=("gradient_checkpointing",),
        where="gradient_checkpointing of the model's layers",
        planned=preparation.gradient_checkpointing,
        effective=bool(on),
        code="gradient-checkpointing",
    )
    yield from _checkpointing(plan, model, on)
    if preparation.input_gradients:
        base = base_of(model)
        hooks = getattr(base, "_require_grads_hooks", None) or getattr(base, "_require_grads_hook", None)
        yield _reading(
            names=(), where="gradients of the embeddings' output", planned=True, effective=bool(hooks)
        )
    tells = preparation.float32_norms or plan.request.asked("float32_norms") is not None
    if preparation.kbit and tells and plan.dtype != "float32" and plan.quantized is not None:
        found = {
            str(parameter.dtype).removeprefix("torch.")
            for name, module in norms(base_of(model)).items()
            if not name.endswith(preparation.norms_left)
            for parameter in module.parameters(recurse=False)
            if not parameter.requires_grad
        }
        if found:
            yield _reading(
                names=("float32_norms",),
                where=f"norms of the quantized base in float32 ({', '.join(sorted(found))})",
                planned=preparation.float32_norms,
                effective=found == {"float32"},
            )
    if preparation.trainable_dtype and plan.adapters is None:
        found = {str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.requires_grad}
        yield _reading(
            names=("trainable_dtype",),
            where="the parameters that train",
            planned=[preparation.trainable_dtype],
            effective=sorted(found),
            verbatim=False,  # "bf16" stands for bfloat16
        )


def _checkpointing(plan: Plan, model: Any, on: list[Any]) -> Iterator[Reading]:
    """What torch's checkpoint function is called with, in every layer that has it."""
    called = [keywords for module in on if (keywords := _keywords(module)) is not None]
    given = plan.preparation.gradient_checkpointing_kwargs if called else {}
    for name in BY_TRANSFORMERS.keys() & given.keys():
        yield _reading(
            names=(f"gradient_checkpointing_kwargs.{name}",),
            where=f"{name} of the model's checkpointing",
            planned=given[name],
            effective=_between(model, given[name]) if name == "every_n_layers" else _moved_away(on),
        )
    for name in [name for name in given if name not in BY_TRANSFORMERS]:
        planned = given[name]
        found = sorted(
            {str(plain(keywords.get(name))): plain(keywords.get(name)) for keywords in called}.items()
        )
        values = [value for _, value in found]
        yield _reading(
            names=(f"gradient_checkpointing_kwargs.{name}",),
            where=f"{name} of the model's checkpointing",
            planned=planned,
            effective=values[0] if len(values) == 1 else values,
        )


def _between(model: Any, planned: int) -> int:
    """Every how many layers activations are recomputed, as far as the model has layers to tell."""
    layers = [m for m in model.modules() if any(k.__name__ == LAYER for k in type(m).__mro__)]
    on = [i for i, layer in enumerate(layers) if layer.gradient_checkpointing]
    steps = {later - sooner for sooner, later in pairwise(on)}
    if len(steps) == 1:
        return steps.pop()
    return planned if len(on) == 1 and len(layers) <= planned else 0


def _moved_away(on: list[Any]) -> bool:
    """Whether saved activations are kept elsewhere: a function of transformers' then calls torch's."""
    called = {getattr(getattr(m, "_gradient_checkpointing_func", None), "func", None) for m in on} - {None}
    return bool(called) and all(function.__module__ != "torch.utils.checkpoint" for function in called)


def _keywords(module: Any) -> Any:
    return getattr(getattr(module, "_gradient_checkpointing_func", None), "keywords", None)
