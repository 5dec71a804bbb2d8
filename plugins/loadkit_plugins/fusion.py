"""Fusions: modules that transformers replaces by others before it makes a model, by `fusion_config`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from loadkit import Context, Plan, Problem, Reading
from loadkit.plugins import did_you_mean

__all__ = ["check_fusions", "fused_modules"]

_problem = partial(Problem, "kwargs", "from-pretrained")

FUSIONS: Mapping[str, tuple[str, int, str]] = {
    "patch_embeddings": (r"(^|\.)patch_embed\.proj\.weight$", 5, "_FusedPatchEmbeddingMixin"),
}
"""Fusion to the weights that it needs, by name and number of dimensions, and to a base of the classes that it
makes (transformers 5.23)."""

FIELD = "fusion_config"


def check_fusions(context: Context) -> Iterator[Problem]:
    """Fusions that transformers doesn't have, and those that find nothing to fuse."""
    asked = context.request.asked("model_kwargs")
    given = None if asked is None else asked.value.get(FIELD)
    said = f"{asked.by} gave {FIELD}={given!r} in model_kwargs" if asked and given is not None else ""
    if given is None:
        given, said = context.checkpoint.config.get(FIELD), f"config.json has {FIELD}"
    for name, value in given.items() if isinstance(given, dict) else ():
        if name not in FUSIONS:
            yield _problem(
                "unknown-fusion",
                f"{said}, and transformers {context.library.version} has no fusion {name!r}{did_you_mean(name, FUSIONS)}",
                f"it has {', '.join(FUSIONS)}",
            )
        elif value is not False and context.checkpoint.tensors and not _fusable(context, name):
            yield _problem(
                "fusion-matches-nothing",
                f"{said}, and the checkpoint has nothing that {name} fuses",
                f"leave {name} out",
                severity="error" if asked is not None and asked.demanded else "warning",
            )


def _fusable(context: Context, name: str) -> bool:
    pattern, dimensions, _ = FUSIONS[name]
    tensors = context.checkpoint.tensors.items()
    return any(re.search(pattern, path) and len(tensor.shape) == dimensions for path, tensor in tensors)


def fused_modules(plan: Plan, base: Any) -> Iterator[Reading]:
    """Which fusions the model has: transformers keeps one for every later load of a process."""
    made = {kind.__name__ for module in base.modules() for kind in type(module).__mro__}
    found = [name for name, (_, _, mixin) in FUSIONS.items() if mixin in made]
    given = plan.kwargs.get(FIELD, getattr(base.config, FIELD, None)) or {}
    planned = [name for name in FUSIONS if given.get(name, False) is not False]
    if not planned and not found:
        return
    yield Reading(
        stage="kwargs",
        names=(f"model_kwargs.{FIELD}",),
        where="fused modules",
        planned=planned,
        effective=found,
        verbatim=False,
    )
