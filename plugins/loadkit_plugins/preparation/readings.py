"""What a loaded model shows of its preparation for training."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from loadkit import Plan, Reading
from loadkit.plugins import base_of, plain
from loadkit_plugins.preparation.norms import norms

__all__ = ["readings"]

_reading = partial(Reading, stage="preparation")


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
    yield from _checkpointing(plan, on)
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


def _checkpointing(plan: Plan, on: list[Any]) -> Iterator[Reading]:
    """What torch's checkpoint function is called with, in every layer that has it."""
    called = [keywords for module in on if (keywords := _keywords(module)) is not None]
    for name, planned in plan.preparation.gradient_checkpointing_kwargs.items() if called else ():
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


def _keywords(module: Any) -> Any:
    return getattr(getattr(module, "_gradient_checkpointing_func", None), "keywords", None)
