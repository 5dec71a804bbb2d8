"""weights: every tensor of the model comes from the checkpoint; one that doesn't is random."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from loadkit import Context, Finding, Loading, Option, Plan, Problem, hookimpl
from loadkit.plugins import HEADED_TASKS, some_of

_problem = partial(Problem, "weights", "weights")
_finding = partial(Finding, "weights", "weights")

OLD_HEADS = (
    "lm_head", "cls", "embed_out", "output", "generator_lm_head", "pooler", "final_logits_bias", "discriminator_predictions",
    "generator_predictions", "generator_lm_head", "lm_predictions", "vocab_transform", "vocab_layer_norm", "vocab_projector",
)  # fmt: skip
"""First or second parts of the names of what a class for another task leaves out."""

NEW_HEADS = ("classifier", "pre_classifier", "score", "pooler", "classification_head", "qa_outputs")
NEW_HEAD = "train the new head before using it"


@hookimpl
def loadkit_options() -> Sequence[Option]:
    return [
        Option(
            name="allow_weights",
            type="list",
            stage="weights",
            help="patterns of tensor names that may be missing, unexpected or of another shape: what you mean to train anew or leave out",
        ),
        Option(
            name="verify",
            type="str",
            stage="weights",
            choices=("sample", "full"),
            help="which tensors are held against the files right after loading: one of each kind (the default), or all of them, which "
            "reads every file again",
        ),
        Option(
            name="random_weights",
            type="bool",
            stage="weights",
            help="initialise every weight anew from the config, to train from scratch: nothing is read from the weight files",
        ),
    ]


@hookimpl
def loadkit_audit_model(plan: Plan, model: Any, loading: Loading) -> Sequence[Finding]:
    from loadkit_plugins.weights.fresh import fresh_findings
    from loadkit_plugins.weights.values import values

    allowed = plan.request.value("allow_weights", [])
    findings = [
        *fresh_findings(plan, model),
        *_missing(plan, _not([*allowed, *_brought(plan)], loading.missing)),
        *_mismatched(plan, _not([*allowed, *_brought(plan)], loading.mismatched)),
        *_unexpected(plan, _not(allowed, loading.unexpected)),
        *values(plan, model),
    ]
    if loading.errors:
        said = f"weights couldn't be converted: {some_of(loading.errors)}"
        findings.append(_finding("conversion-errors", said))
    return findings


@hookimpl
def loadkit_check_plan(context: Context, plan: Plan) -> Sequence[Problem]:
    from loadkit_plugins.weights.config_checks import check_config
    from loadkit_plugins.weights.fresh import check_fresh

    patterns = plan.request.value("allow_weights", [])
    bad = [
        _problem(
            "bad-pattern",
            f"allow_weights names {pattern!r}, which isn't a regular expression: {fault}",
            "write a part of the tensors' names; a dot stands for any character",
        )
        for pattern in patterns
        if (fault := _fault(pattern))
    ]
    if context.request.value("random_weights"):  # the files' tensors don't matter then
        return [*bad, *check_fresh(context, plan)]
    return [*bad, *_verification(context), *check_config(context, plan)]


def _verification(context: Context) -> Iterator[Problem]:
    stored = context.checkpoint.weight_format
    if context.request.value("verify") == "full" and stored != "safetensors":
        yield _problem(
            "nothing-to-verify-with",
            f"verify='full' was asked for, and the weights of {context.checkpoint.source!r} are stored as {stored}: only safetensors files "
            "can be held against a model tensor by tensor",
            "leave verify out, or save the model again as safetensors",
        )


def _brought(plan: Plan) -> list[str]:
    """Patterns for the tensors that an adapter brings whole: they are its own, and not random."""
    members = plan.adapters.members if plan.adapters else ()
    return [rf"^(model\.)?{re.escape(name)}($|:)" for adapter in members for name in adapter.whole]


def _fault(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        return str(error)
    return ""


def _missing(plan: Plan, names: Sequence[str]) -> Iterator[Finding]:
    if names:
        new = _new_head(plan, names)
        yield _finding(
            "missing-weights",
            f"{len(names)} tensors aren't in the checkpoint and hold random values: {some_of(names)}",
            severity="warning" if new else "error",
            remedy=NEW_HEAD
            if new
            else "check that the checkpoint is complete and of this architecture; `task` chooses another class, "
            "and allow_weights lets pass what you mean to train anew",
        )


def _mismatched(plan: Plan, shapes: Sequence[str]) -> Iterator[Finding]:
    if shapes:
        new = _new_head(plan, [text.partition(":")[0] for text in shapes])
        yield _finding(
            "mismatched-weights",
            f"{len(shapes)} tensors have another shape, and hold random values: {some_of(shapes)}",
            severity="warning" if new else "error",
            remedy=NEW_HEAD if new else "config.json and the weight files don't belong together",
        )


def _unexpected(plan: Plan, names: Sequence[str]) -> Iterator[Finding]:
    """Tensors without a place: an error, but for what a class that was chosen on purpose leaves out."""
    if names and not plan.model_class.config_key:
        in_head = all({*name.split(".")[:2]} & {*OLD_HEADS} for name in names)
        other_head = plan.model_class.task in HEADED_TASKS and in_head
        yield _finding(
            "unexpected-weights",
            f"{len(names)} tensors of the checkpoint have no place in the model: {some_of(names)}",
            severity="warning" if other_head else "error",
            remedy="the output head gave way to another one"
            if other_head
            else "check that the class fits the checkpoint (`loadkit plan` says why it was chosen); allow_weights lets pass what is meant to be left out",
        )


def _not(allowed: Sequence[str], names: Sequence[str]) -> list[str]:
    """The names that no pattern allows; a pattern is a regular expression for a part of the name."""
    return [name for name in names if not any(re.search(pattern, name) for pattern in allowed)]


def _new_head(plan: Plan, names: Sequence[str]) -> bool:
    """Whether only the head is concerned, of a task whose head is trained anew."""
    return plan.model_class.task in HEADED_TASKS and all(name.split(".")[0] in NEW_HEADS for name in names)
