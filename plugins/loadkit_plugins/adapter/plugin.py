"""adapter: a new LoRA by plain options or any PEFT config, or existing ones, checked against their base."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loadkit import (
    Adapters,
    Claim,
    Context,
    Finding,
    ModelClass,
    Option,
    Plan,
    Preparation,
    Problem,
    Quantization,
    Reading,
    Strength,
    Tokens,
    Vocabulary,
    Weight,
    hookimpl,
)
from loadkit_plugins.adapter.settings import declared_options, existing_adapters, new_adapter, stacked


@hookimpl
def loadkit_options() -> Sequence[Option]:
    return declared_options()


@hookimpl
def loadkit_choose_adapter(
    context: Context,
    architecture: ModelClass,
    dtype: str,
    quantization: Quantization | None,
    preparation: Preparation,
    tokens: Tokens | None,
) -> Sequence[Claim[Adapters | None]]:
    request = context.request
    switch = request.asked("adapter")
    if switch is not None and switch.value is False and (switch.demanded or not context.beside.adapters):
        return [Claim(value=None, because=switch.because, strength=switch.strength)]
    over = request.asked("new_adapter")
    if context.beside.adapters:
        existing = existing_adapters(context, dtype, quantization, preparation)
        if over is None or not over.value:
            return [existing]
        made = new_adapter(context, architecture, dtype, quantization, preparation, tokens, over)
        return [stacked(existing, made)]
    whole = request.asked("peft_config")
    asked = whole or (switch if switch is not None and switch.value else None)
    if asked is None:
        return [Claim(value=None, because="nobody asked for an adapter", strength=Strength.FALLBACK)]
    if switch is not None and switch.value is not True and switch.value is not False and whole is None:
        return []  # an existing one was asked for, and couldn't be read, which has been told
    return [new_adapter(context, architecture, dtype, quantization, preparation, tokens, asked)]


@hookimpl
def loadkit_estimate_adapters(
    context: Context, plan: Plan, weights: Sequence[Weight]
) -> Sequence[Weight] | None:
    from loadkit_plugins.adapter.memory import estimate

    return estimate(context, plan, weights)


@hookimpl
def loadkit_check_plan(context: Context, plan: Plan) -> Sequence[Problem]:
    from loadkit_plugins.adapter.checks import check

    return check(context, plan)


@hookimpl
def loadkit_attach_adapters(plan: Plan, model: Any, adapters: Adapters, vocabulary: Vocabulary) -> Any:
    from loadkit_plugins.adapter.attach import attach

    return attach(plan, model, adapters, vocabulary)


@hookimpl
def loadkit_merge_adapters(plan: Plan, model: Any, adapters: Adapters) -> Any:
    from loadkit_plugins.adapter.attach import merge

    return merge(model, adapters)


@hookimpl
def loadkit_audit_model(plan: Plan, model: Any) -> Sequence[Finding]:
    from loadkit_plugins.adapter.audit import audit

    return audit(plan, model)


@hookimpl
def loadkit_read_back(plan: Plan, model: Any) -> Sequence[Reading]:
    from loadkit_plugins.adapter.readings import readings

    return list(readings(plan, model))
