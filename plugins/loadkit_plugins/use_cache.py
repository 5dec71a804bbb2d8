"""KV cache: off while activations are recomputed or training, on for inference, in every nested config."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loadkit import Claim, Context, Option, Plan, Preparation, Problem, Reading, Strength, hookimpl
from loadkit.plugins import configs
from loadkit_plugins.model_types import OVER_A_CACHE


@hookimpl
def loadkit_options() -> Sequence[Option]:
    return [
        Option(
            name="use_cache",
            type="bool",
            stage="use_cache",
            help="keep a key-value cache; by default off when training, on for inference",
        )
    ]


@hookimpl
def loadkit_choose_use_cache(context: Context, preparation: Preparation) -> Sequence[Claim[bool | None]]:
    value: bool | None = None
    if context.checkpoint.model_type in OVER_A_CACHE:
        because = f"{context.checkpoint.model_type} computes over its cache in training too"
    elif preparation.gradient_checkpointing:
        value, because = (
            False,
            "gradient checkpointing recomputes the forward pass, which a cache would corrupt",
        )
    elif preparation.training:
        value, because = False, "a cache is of no use in a training step"
    else:
        because = "nothing speaks for another value than the checkpoint's own"
    opinion = Claim(value=value, because=because, strength=Strength.FALLBACK)
    asked = context.request.asked("use_cache")
    if asked is None:
        return [opinion]
    return [Claim(value=asked.value, because=asked.because, strength=asked.strength), opinion]


@hookimpl
def loadkit_check_plan(plan: Plan) -> Sequence[Problem]:
    if not (plan.use_cache and plan.preparation.gradient_checkpointing):
        return []
    said = (
        "use_cache=True and gradient checkpointing exclude each other: "
        f"the cache because {plan.why('use_cache').because}, checkpointing because {plan.why('preparation').because}"
    )
    fix = "give use_cache=False or gradient_checkpointing=False"
    return [Problem("use_cache", "use-cache", "cache-with-checkpointing", said, fix)]


@hookimpl
def loadkit_read_back(plan: Plan, model: Any) -> Sequence[Reading]:
    if plan.use_cache is None:
        return []
    return [
        Reading(
            stage="use_cache",
            names=("use_cache",),
            where=f"config.{path}.use_cache".replace("..", "."),
            planned=plan.use_cache,
            effective=config.use_cache,
            code="use-cache",
        )
        for path, config in configs(model.config)
        if hasattr(config, "use_cache")
    ]
