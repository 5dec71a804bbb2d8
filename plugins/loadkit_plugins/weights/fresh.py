"""Weights that are initialised anew on purpose: what can't go with it, and that it is said aloud."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from loadkit import Context, Finding, Plan, Problem
from loadkit.plugins import base_of

__all__ = ["check_fresh", "fresh_findings"]

_problem = partial(Problem, "weights", "weights")

BUILT_WITH = ("allow_all_kernels", "cache_dir", "experts_implementation", "local_files_only", "use_kernels")
"""Further arguments of `from_pretrained` that a model takes that is built from its config."""

REMEDY = "leave it out, or leave random_weights out to load what the files hold"


def check_fresh(context: Context, plan: Plan) -> Iterator[Problem]:
    """That the weights are random, as a warning; and what of the plan can't be with weights from no file."""
    asked = context.request.asked("random_weights")
    if asked is None:
        return
    by = "you" if asked.demanded else asked.by
    for what in _in_the_way(context, plan):
        yield _problem(
            "random-weights-beside", f"{by} asked for random_weights, which can't go with {what}", REMEDY
        )
    yield _problem(
        "random-weights",
        f"every weight is initialised anew, as {by} asked: none is taken from the weight files of {context.checkpoint.source!r}; "
        "torch.manual_seed before loading makes the numbers repeatable",
        "leave random_weights out to load what the files hold",
        severity="warning",
    )


def _in_the_way(context: Context, plan: Plan) -> Iterator[str]:
    """What takes weights from files, or a way of loading that building from a config doesn't have."""
    if plan.quantization is not None:
        yield f"quantization ({plan.quantization.method})"
    for adapter in plan.adapters.members if plan.adapters else ():
        if adapter.source:
            yield f"the trained adapter {adapter.source!r}"
    if context.request.asked("verify") is not None:
        yield "verify, which holds weights against the files"
    if plan.model_class.implementation == "plugin":
        yield "a class that a plugin loads itself"
    if context.checkpoint.weight_format == "gguf":
        yield "a GGUF file"
    if "tp_plan" in plan.kwargs:
        yield "tensor parallelism"
    where = plan.placement.device_map
    if isinstance(where, str) or (where is not None and len(set(where.values())) > 1):
        yield f"weights spread over devices (device_map={where!r})"
    keywords = context.library.keywords
    for decision in plan.decisions:
        stage, _, name = decision.stage.partition(".")
        if stage == "kwargs" and name in keywords.taken and name not in (*BUILT_WITH, *keywords.ignored):
            yield f"{name}, an argument of from_pretrained alone"


def fresh_findings(plan: Plan, model: Any) -> Iterator[Finding]:
    """That no weight is the checkpoint's, and a matrix that initialising left without values."""
    if not plan.request.value("random_weights"):
        return
    asked = plan.request.asked("random_weights")
    yield Finding(
        "weights",
        "weights",
        "random-weights",
        f"all weights were initialised anew, as {'you' if asked is None or asked.demanded else asked.by} asked: none is the checkpoint's",
        severity="warning",
        remedy="train it before using it",
    )
    embeddings = getattr(base_of(model), "get_input_embeddings", lambda: None)()
    weight = getattr(embeddings, "weight", None)
    if weight is not None and weight.device.type != "meta" and not bool(weight.any()):
        yield Finding(
            "weights",
            "weights",
            "not-initialised",
            "the embeddings hold nothing but zeros, so this class doesn't initialise its weights",
            remedy="call model.init_weights(), or tell the authors of the class",
        )
