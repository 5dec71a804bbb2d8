"""Mistral's own tokenizer, of the package mistral-common: what it takes, and what it can't be told."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from typing import Any

from loadkit import Context, Plan, Problem, Processing

__all__ = [
    "BACKENDS",
    "CLASS",
    "is_mistral_common",
    "kept_out",
    "mistral_common_problems",
    "mistral_common_settings",
    "missing",
]

_problem = partial(Problem, "processing", "processing")

BACKENDS = ("transformers", "mistral-common")
"""Who reads the tokenizer's files."""

CLASS = "transformers.tokenization_mistral_common:MistralCommonBackend"
"""Its class in transformers 5.23."""

LOWEST = (1, 11, 5)
"""The lowest version of mistral-common that transformers 5.23 takes; without Pillow it takes none."""

FILES = re.compile(r"tekken\.json|[^.]+(\.model|\.model\.v\d+(m\d+)?)")
"""Names of the files that it reads (mistral-common 1.11, `get_one_valid_tokenizer_file`)."""

FIXED = (
    "additional_special_tokens", "bos_token", "chat_template", "eos_token", "pad_token", "unk_token", "use_fast",
    "vocabulary_to_multiple_of",
)  # fmt: skip
"""Options that change a tokenizer, which this one doesn't let happen."""


def is_mistral_common(processing: Processing) -> bool:
    """Whether the plan's tokenizer is Mistral's own."""
    return processing.processing_class == CLASS


def missing(context: Context) -> tuple[str, str]:
    """What is missing for it, and what to do; two empty texts where nothing is."""
    found = context.machine.version("mistral-common")
    lowest = ".".join(map(str, LOWEST))
    if found is None:
        return "the package mistral-common isn't installed", f"pip install 'mistral-common[image]>={lowest}'"
    if found < LOWEST:
        return (
            f"mistral-common is {'.'.join(map(str, found))}",
            f"pip install 'mistral-common[image]>={lowest}'",
        )
    if context.machine.version("pillow") is None:
        return "the package pillow isn't installed, which it needs", "pip install pillow"
    facts = context.processing
    if not any(FILES.fullmatch(name) for name in facts.files):
        return (
            f"{facts.location} has no file of it, such as tekken.json",
            "name a repository that has one with tokenizer=…",
        )
    return "", ""


def kept_out(context: Context) -> dict[str, Any]:
    """Arguments of AutoTokenizer that keep it from choosing Mistral's own because its package is installed.

    transformers 5.23 does so where there is a tekken.json; what is loaded would then depend on the machine.
    """
    chosen = (
        "tekken.json" in context.processing.files and context.machine.version("mistral-common") is not None
    )
    return {"mistral_format": False} if chosen else {}


def mistral_common_settings(context: Context) -> dict[str, Any]:
    """Fields of the plan's processing class: it checks conversations as training or as running needs them."""
    training = bool(context.request.value("training", False))
    return {"processing_class": CLASS, "options": {"mode": "finetuning" if training else "test"}}


def mistral_common_problems(context: Context, plan: Plan) -> Iterator[Problem]:
    """A demand for it that can't be met, a wish that wasn't, and what would change its tokens or template."""
    asked = context.request.asked("tokenizer_backend")
    if asked is None or asked.value != "mistral-common":
        return
    by = "you" if asked.demanded else asked.by
    lacking, remedy = missing(context)
    if not is_mistral_common(plan.processing):
        reason = lacking or f"processing_class={plan.processing.kind!r} was asked for too"
        yield _problem(
            "no-mistral-common",
            f"{by} asked for tokenizer_backend='mistral-common', and {reason}"
            + ("" if asked.demanded else ": the tokenizer is transformers' own"),
            f"{remedy or 'leave one of the two out'}; tokenizer_backend='transformers' asks for transformers' own",
            severity="error" if asked.demanded else "warning",
        )
        return
    changing = [a for name in FIXED if (a := context.request.asked(name))]
    for change in changing:
        yield _problem(
            "mistral-common-fixed",
            f"{by} asked for tokenizer_backend='mistral-common', and {'you' if change.demanded else change.by} for {change.name}: "
            "the tokens and the template of Mistral's own tokenizer can't be changed"
            + ("" if change.demanded else ", and stay as they are"),
            f"leave {change.name} out, or give tokenizer_backend='transformers'",
            severity="error" if change.demanded else "warning",
        )
    if plan.model_class.task == "image-text-to-text":
        yield _problem(
            "mistral-common-images",
            "images are read by Mistral's own tokenizer, in apply_chat_template: no processor is loaded beside it",
            "give tokenizer_backend='transformers' for transformers' processor",
            severity="note",
        )
