"""How activations are recomputed: what the keyword arguments may be, and turning it on."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import partial
from typing import Any

from loadkit import Context, Plan, Problem
from loadkit.plugins import did_you_mean, fits

__all__ = ["BY_TRANSFORMERS", "check_keywords", "enable"]

_problem = partial(Problem, "preparation", "preparation")

BY_TRANSFORMERS = {"every_n_layers": "int", "offload": "bool"}
"""What transformers takes for itself, of which layers and where to (5.23)."""

TAKEN = {
    "use_reentrant": "bool",
    "preserve_rng_state": "bool",
    "determinism_check": "str",
    "debug": "bool",
    "early_stop": "bool",
    **BY_TRANSFORMERS,
}
"""Keyword arguments of torch's `checkpoint` (2.13) to their types; it hands others on to the layer, which
takes no notice of most."""

CHECKS = ("default", "none")
NOT_REENTRANT = {"debug": False, "determinism_check": "default", "early_stop": True}
"""What the reentrant kind refuses, or doesn't look at, and what it is by default."""


def check_keywords(context: Context, plan: Plan) -> Iterator[Problem]:
    """Keyword arguments that nobody takes, of another type, and those that don't go together."""
    asked = context.request.asked("gradient_checkpointing_kwargs")
    given: dict[str, Any] = plan.preparation.gradient_checkpointing_kwargs
    for name, value in given.items():
        said = f"{asked.by if asked else 'the plan'} gave {name}={value!r} in gradient_checkpointing_kwargs"
        if name == "context_fn":
            yield _problem(
                "bad-checkpointing-kwarg",
                f"{said}, and it is a function, which plain data can't stand for",
                "leave it out, and call gradient_checkpointing_enable on the loaded model",
            )
        elif name not in TAKEN:
            yield _problem(
                "unknown-checkpointing-kwarg",
                f"{said}, which neither torch's checkpoint nor transformers takes{did_you_mean(name, TAKEN)}",
                f"it can be {', '.join(TAKEN)}",
            )
        elif not fits(TAKEN[name], value):
            yield _problem(
                "bad-checkpointing-kwarg",
                f"{said}, a {type(value).__name__}; it takes a {TAKEN[name]}",
                "give a value of that type",
            )
        elif (name == "every_n_layers" and value < 1) or (
            name == "determinism_check" and value not in CHECKS
        ):
            choices = "1 or more" if name == "every_n_layers" else f"one of {', '.join(CHECKS)}"
            yield _problem(
                "bad-checkpointing-kwarg", f"{said}, and there is no such choice", f"give {choices}"
            )
        elif name in NOT_REENTRANT and given.get("use_reentrant") is True and value != NOT_REENTRANT[name]:
            yield _problem(
                "fields-contradict",
                f"{said}, and use_reentrant=True: the reentrant kind has no {name}",
                f"give use_reentrant=False, or leave {name} out",
                severity="error" if name == "debug" else "warning",
            )


def enable(model: Any, keywords: dict[str, Any]) -> None:
    """Turn checkpointing on, with torch's keyword arguments for torch and transformers' for itself."""
    own = {name: value for name, value in keywords.items() if name in BY_TRANSFORMERS}
    rest = {name: value for name, value in keywords.items() if name not in own}
    # transformers 5.23 renamed the method, and warns at the old name; Python 3.10 has an older transformers.
    if hasattr(model, "activation_checkpointing_enable"):
        taken = inspect.signature(model.activation_checkpointing_enable).parameters
        own = {name: value for name, value in own.items() if name in taken}  # one that isn't is read back
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=rest, **own)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=rest)
