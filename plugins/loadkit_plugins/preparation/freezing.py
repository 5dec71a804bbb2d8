"""Which weights of an unquantized base train, and in which dtype."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from loadkit import Context, Finding, Option, Plan, Problem
from loadkit.plugins import FLOATS, base_of, canonical_dtype, is_projector, towers

__all__ = ["audit", "check", "declared_options", "freeze", "parts_of", "train_only", "trainable_dtype"]

_problem = partial(Problem, "preparation", "preparation")

PARTS = ("towers", "projector", "language-model")
LAYERS = ("num_hidden_layers", "num_layers", "n_layer")
"""Config fields that tell how many layers the language model has."""

FIELDS = ("count", "modules", "also", "spread")


def declared_options() -> Sequence[Option]:
    """What a request may say of it."""

    def option(name: str, kind: str, line: str) -> Option:
        return Option(name=name, type=kind, help=line, stage="preparation")

    return [
        option(
            "trainable_dtype",
            "str",
            "dtype of the base's weights that train, where it isn't that of the others",
        ),
        option(
            "frozen_parts",
            "list",
            'parts of a multimodal model that don\'t train, nor take an adapter: "towers", "projector", "language-model"',
        ),
        option(
            "train_only",
            "list",
            "patterns that the paths of the parameters that train begin with; all others are frozen",
        ),
        option(
            "train_layers",
            "mapping",
            'layers that train, all else is frozen: "count" of the last ones (2; negative: of the first), "spread" over the depth, '
            '"modules" in them, and what trains "also"',
        ),
    ]


LITERAL = re.compile(r"\w+(?=\\?\.|$|\w)")
"""The word that a pattern begins with, where it means just that."""


def trainable_dtype(context: Context) -> tuple[str, str]:
    """The dtype that was asked for, and why it isn't granted: a mere wish gives way to what an engine does
    itself."""
    asked = context.request.asked("trainable_dtype")
    wanted = canonical_dtype(asked.value) if asked is not None else ""
    reason = {
        "zero3": "ZeRO-3 keeps a copy of those that train in float32",
        "fsdp": "FSDP1 wants one dtype in each wrapped unit",
    }.get(context.topology.engine)
    if asked is not None and not asked.demanded and reason:
        return "", f"no weights in {wanted}: {reason}"
    return wanted, ""


def train_only(context: Context) -> tuple[str, ...]:
    """The patterns that were asked for, and those of the layers that were."""
    given = [each for each in context.request.value("train_only", ()) if _wrong(each) is None]
    asked = context.request.asked("train_layers")
    layers = _layers(context)
    if asked is not None and layers:
        wanted = asked.value
        numbers = "|".join(map(str, _chosen(wanted, layers)))
        modules = [each for each in _listed(wanted.get("modules")) if each != "all"] or [""]
        given += [rf".*\.({numbers})\.{re.escape(each)}" for each in modules]
        given += [rf"(.*\.)?{re.escape(each)}\." for each in _listed(wanted.get("also"))]
    return tuple(given)


def check(context: Context, plan: Plan) -> Iterator[Problem]:
    """What can't be about it."""
    request = context.request
    for part in request.value("frozen_parts", ()):
        if part not in PARTS:
            yield _problem("unknown-part", f"frozen_parts names {part!r}", f"name some of {', '.join(PARTS)}")
    for pattern in request.value("train_only", ()):
        if (wrong := _wrong(pattern)) is not None:
            yield _problem(
                "bad-pattern",
                f"train_only: {pattern!r} isn't a pattern: {wrong}",
                "correct it: re.match is what reads it",
            )
    yield from _matching_nothing(context, plan)
    layers = request.asked("train_layers")
    if layers is not None and (unknown := sorted(set(layers.value) - set(FIELDS))):
        yield _problem(
            "unknown-field", f"train_layers has {', '.join(unknown)}", f"its fields are {', '.join(FIELDS)}"
        )
    if layers is not None and not _layers(context):
        yield _problem(
            "unknown-layers",
            f"train_layers was asked for, and the config of {context.checkpoint.location!r} doesn't say how many layers there are",
            "give train_only=[…], patterns of the parameters that train",
        )
    dtype = plan.preparation.trainable_dtype
    if dtype and dtype not in FLOATS:
        yield _problem("unknown-dtype", f"trainable_dtype={dtype!r}", f"choose one of {', '.join(FLOATS)}")
    demanded = [
        n for n in ("trainable_dtype", "train_only", "train_layers") if (a := request.asked(n)) and a.demanded
    ]
    if demanded and not plan.preparation.freezes:
        what = "an adapter trains" if plan.preparation.training else "nothing trains"
        yield _problem("freezing-unused", f"you asked for {', '.join(demanded)}, but {what}", "leave it out")


def _matching_nothing(context: Context, plan: Plan) -> Iterator[Problem]:
    """Patterns that begin as no path of the class does."""
    owner = plan.model_class.model_class
    families = context.library.families.values()
    first = next((set(f.modules[owner].members) for f in families if owner in f.modules), set[str]())
    if plan.model_class.implementation != "transformers" or not first:
        return
    given = context.request.value("train_only", ())
    lost = [
        pattern
        for pattern in given
        if (begins := LITERAL.match(pattern))
        and not any(name.startswith(begins[0]) or begins[0].startswith(name) for name in first)
    ]
    asked = context.request.asked("train_only")
    if asked is not None and not asked.demanded and len(lost) < len(given):
        return  # of a recipe's list, its stack takes what is there
    for pattern in lost:
        yield _problem(
            "train-only-matches-nothing",
            f"train_only has {pattern!r}, and no path of {owner} begins so: they begin with {', '.join(sorted(first))}",
            f'write the path from its beginning, or ".*{pattern}" for wherever it stands',
        )


def parts_of(model: Any, path: str) -> str:
    """The part of a multimodal model that a module or parameter belongs to; "" in a model of text alone."""
    beside = towers(model)
    return _part(path, beside) if beside else ""


def freeze(plan: Plan, model: Any) -> Any:
    """Freeze what doesn't train, and cast what does."""
    import torch

    wanted = _training(plan, model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(wanted[name])
        if wanted[name] and plan.preparation.trainable_dtype and parameter.is_floating_point():
            parameter.data = parameter.data.to(getattr(torch, plan.preparation.trainable_dtype))
    return model


def audit(plan: Plan, model: Any) -> Iterator[Finding]:
    """Whether just the planned weights train."""
    if not plan.preparation.freezes or plan.adapters is not None:
        return
    base = base_of(model)
    wanted = _training(plan, base)
    for name, parameter in base.named_parameters():
        if parameter.is_floating_point() and parameter.requires_grad != wanted[name]:
            said = "trains" if parameter.requires_grad else "is frozen"
            planned, what = "" if wanted[name] else "frozen", "other weights train than planned"
            yield Finding("preparation", "preparation", "frozen", what, planned, f"{name} {said}")
            return


def _training(plan: Plan, model: Any) -> Mapping[str, bool]:
    preparation, beside = plan.preparation, towers(model)
    patterns = [re.compile(pattern) for pattern in preparation.train_only]
    found = {}
    for name, parameter in model.named_parameters():
        part = _part(name, beside) if beside else ""
        within = not patterns or any(pattern.match(name) for pattern in patterns)
        found[name] = within and part not in preparation.frozen_parts and parameter.is_floating_point()
    return found


def _part(path: str, beside: Sequence[str]) -> str:
    if is_projector(path):
        return "projector"
    return (
        "towers" if any(path.startswith(f"{each}.") or path == each for each in beside) else "language-model"
    )


def _chosen(wanted: Mapping[str, Any], layers: int) -> list[int]:
    """As LLaMA-Factory counts them."""
    count = int(wanted.get("count", 2))
    if wanted.get("spread"):
        step = max(1, layers // max(1, abs(count)))
        return list(range(step - 1, layers, step))
    return list(range(max(0, layers - count), layers)) if count > 0 else list(range(min(-count, layers)))


def _layers(context: Context) -> int:
    config = context.checkpoint.text_config
    return next((int(config[key]) for key in LAYERS if isinstance(config.get(key), int)), 0)


def _listed(value: Any) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def _wrong(pattern: str) -> str | None:
    try:
        re.compile(pattern)
    except re.error as error:
        return str(error)
    return None
