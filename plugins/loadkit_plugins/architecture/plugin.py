"""architecture: which class loads the checkpoint.

In this order: a family that a plugin registered (where transformers has none, or where it is preferred),
transformers' own class by the checkpoint's `architectures` and the user's `task`, the checkpoint's own code
with the user's consent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from loadkit import Claim, Context, ModelClass, Option, Plan, Problem, Reading, hookimpl
from loadkit.plugins import base_of
from loadkit_plugins.architecture.brought import registered, remote
from loadkit_plugins.architecture.checks import check, explain
from loadkit_plugins.architecture.labels import label_claims
from loadkit_plugins.architecture.native import native
from loadkit_plugins.architecture.tasks import TASKS, TEXT


@hookimpl
def loadkit_options() -> Sequence[Option]:
    return [
        Option(
            name="task",
            type="str",
            stage="architecture",
            choices=(*TASKS, TEXT),
            help='what the model is for; by default what its config says. "text": the language model alone',
        ),
        Option(
            name="model_class",
            type="str",
            stage="architecture",
            help="the class that is expected to load it, such as LlamaForCausalLM: another one is an error, or told where a recipe says so",
        ),
        Option(
            name="num_labels",
            type="int",
            stage="architecture",
            help="labels of a classification head: 1 for a reward model; by default the checkpoint's or the adapter's",
        ),
    ]


@hookimpl
def loadkit_contribute_kwargs(context: Context, plan: Plan) -> Mapping[str, list[Claim[Any]]]:
    return label_claims(context, plan)


@hookimpl
def loadkit_choose_architecture(context: Context) -> Claim[ModelClass] | Problem:
    family, own = context.registered, native(context)
    if family is not None and (family.preferred or own is None) and (found := registered(context, family)):
        return found
    if own is not None:
        return own
    if context.request.value("trust_remote_code", False) and (found := remote(context)):
        return found
    return explain(context)


@hookimpl
def loadkit_check_plan(context: Context, plan: Plan) -> Sequence[Problem]:
    return check(context, plan)


@hookimpl
def loadkit_read_back(plan: Plan, model: Any) -> Sequence[Reading]:
    return [
        Reading(
            stage="architecture",
            names=("task",),
            where="the model's class",
            planned=re.split(r"[.:]", plan.model_class.model_class)[-1],
            effective=type(base_of(model)).__name__,
            verbatim=False,
            code="model-class",
        )
    ]
