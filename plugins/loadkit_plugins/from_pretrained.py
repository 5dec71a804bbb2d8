"""from-pretrained: the keyword arguments that no stage owns: where to cache, and the user's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from loadkit import Claim, Context, Plan, Problem, Reading, hookimpl
from loadkit.plugins import base_of, did_you_mean, plain
from loadkit_plugins.fusion import check_fusions, fused_modules
from loadkit_plugins.model_kwargs import check_model_kwargs
from loadkit_plugins.rope import moved_into_rope
from loadkit_plugins.token_ids import check_token_ids

_problem = partial(Problem, "kwargs", "from-pretrained")

PASSED_ON = ("cache_dir", "local_files_only")


@hookimpl
def loadkit_contribute_kwargs(context: Context) -> Mapping[str, list[Claim[Any]]]:
    asked = [a for name in PASSED_ON if (a := context.request.asked(name))]
    kwargs = {a.name: [Claim(value=a.value, because=a.because, strength=a.strength)] for a in asked}
    if given := context.request.asked("model_kwargs"):
        for name, value in moved_into_rope(context, given.value).items():
            claim = Claim(value=value, because=f"{given.because} in model_kwargs", strength=given.strength)
            kwargs.setdefault(name, []).append(claim)
    return kwargs


@hookimpl
def loadkit_check_plan(context: Context, plan: Plan) -> Sequence[Problem]:
    return [
        *check_model_kwargs(context, plan),
        *check_token_ids(context, plan),
        *_experts(context, plan),
        *check_fusions(context),
    ]


def _experts(context: Context, plan: Plan) -> Sequence[Problem]:
    """An implementation of experts that isn't there."""
    given: Mapping[str, Any] = context.request.value("model_kwargs", {})
    wanted, known = given.get("experts_implementation"), context.experts_implementations
    if known and plan.quantized is not None and plan.quantized.options.get("packed_parameters"):
        known = (*known, "packed")
    named = list(wanted.values()) if isinstance(wanted, dict) else [wanted]
    wrong = [name for name in named if name is not None and known and name not in known]
    return [
        _problem(
            "unknown-experts-implementation",
            f"experts_implementation={name!r} was asked for in model_kwargs, and transformers {context.library.version} has none of "
            f"that name{did_you_mean(str(name), known)}",
            f"choose one of {', '.join(known)}",
        )
        for name in wrong
    ]


@hookimpl
def loadkit_read_back(plan: Plan, model: Any) -> Sequence[Reading]:
    base = base_of(model)
    return [*_kernels(plan, base), *fused_modules(plan, base), *_readings(plan, base.config)]


def _kernels(plan: Plan, base: Any) -> Iterator[Reading]:
    """Whether layers run with kernels from the Hub."""
    if (planned := plan.kwargs.get("use_kernels")) is not None:
        yield Reading(
            stage="kwargs",
            names=("use_kernels", "model_kwargs.use_kernels"),
            where="model.use_kernels",
            planned=bool(planned),
            effective=bool(getattr(base, "use_kernels", False)),
        )


def _readings(plan: Plan, config: Any) -> Iterator[Reading]:
    """Further keyword arguments that became fields of the config."""
    for decision in plan.decisions:
        stage, _, name = decision.stage.partition(".")
        if stage != "kwargs" or not name or name in PASSED_ON:
            continue
        where, found = _field(config, name)
        if where:
            yield Reading(
                stage="kwargs",
                names=(name, f"model_kwargs.{name}"),
                where=f"config.{where}",
                planned=decision.value,
                effective=_within(found, decision.value),
            )


def _field(config: Any, name: str) -> tuple[str, Any]:
    """Where a config has a field, and its value; "" where it has none."""
    for attribute in (name, f"_{name}"):  # experts_implementation is kept as a private one
        if hasattr(config, attribute):
            return attribute, getattr(config, attribute)
    rope = getattr(config, "rope_parameters", None)
    if isinstance(rope, Mapping) and name in rope:
        return f"rope_parameters.{name}", rope[name]
    return "", None


def _within(found: Any, planned: Any) -> Any:
    """A field's value as plain data: of a mapping or a nested config, what was planned of it."""
    if not isinstance(planned, Mapping):
        return plain(found)
    if isinstance(found, Mapping):
        held: Mapping[str, Any] = {str(key): value for key, value in found.items()}
        return {key: _within(held.get(key), value) for key, value in planned.items()}
    asked = {
        key: value for key, value in planned.items() if value is not None
    }  # a whole config has those too
    return {**planned, **{key: _within(getattr(found, key, None), value) for key, value in asked.items()}}
