"""from-pretrained: the keyword arguments that no stage owns: where to cache, and the user's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from loadkit import Claim, Context, Plan, Problem, hookimpl
from loadkit.plugins import did_you_mean
from loadkit_plugins.model_kwargs import check_model_kwargs
from loadkit_plugins.rope import moved_into_rope

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
    return [*check_model_kwargs(context, plan), *_experts(context)]


def _experts(context: Context) -> Sequence[Problem]:
    """An implementation of experts that isn't there."""
    given: Mapping[str, Any] = context.request.value("model_kwargs", {})
    wanted, known = given.get("experts_implementation"), context.experts_implementations
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
