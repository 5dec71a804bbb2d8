"""processing: the tokenizer or processor that goes with the model, at the model's commit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from loadkit import (
    Checkpoint,
    Claim,
    Context,
    ModelClass,
    Option,
    Plan,
    Problem,
    Processing,
    Strength,
    hookimpl,
)

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")

Kind = Literal["tokenizer", "processor", "none"]


@hookimpl
def loadkit_options() -> Sequence[Option]:
    return [
        Option(
            name="processing_class",
            type="str",
            stage="processing",
            choices=("auto", "tokenizer", "processor", "none"),
            help="what to load beside the model; by default a processor for multimodal models, else a tokenizer",
        ),
        Option(
            name="chat_template",
            type="str",
            stage="processing",
            help="a chat template, as Jinja text, to set",
        ),
        Option(
            name="padding_side",
            type="str",
            stage="processing",
            choices=("left", "right"),
            help="the side that padding goes to; by default the checkpoint's own",
        ),
    ]


@hookimpl
def loadkit_choose_processing(context: Context, architecture: ModelClass) -> Sequence[Claim[Processing]]:
    kind, because = _own(context.checkpoint, architecture)
    fallback = Claim(value=_value(kind, context), because=because, strength=Strength.FALLBACK)
    asked = context.request.asked("processing_class")
    if asked is None or asked.value == "auto":
        return [fallback]
    return [
        Claim(value=_value(asked.value, context), because=asked.because, strength=asked.strength),
        fallback,
    ]


@hookimpl
def loadkit_check_plan(context: Context, plan: Plan) -> Sequence[Problem]:
    kind, checkpoint = plan.processing.kind, context.checkpoint
    problems = []
    demanded = plan.why("processing").strength is not Strength.FALLBACK
    if demanded and kind != "none" and not _has(checkpoint, kind):
        wanted = TOKENIZER_FILES if kind == "tokenizer" else PROCESSOR_FILES
        problems.append(
            _problem(
                f"no-{kind}",
                f"a {kind} was asked for, and {checkpoint.location} has none of {', '.join(wanted)}",
                "leave processing_class out, or save one beside the model",
            )
        )
    if kind == "none" and not demanded:
        problems.append(
            _problem(
                "no-processing-class",
                f"{checkpoint.location} has no tokenizer and no processor, so processing_class is None",
                "save one beside the model if you need it",
                severity="warning",
            )
        )
    unused = [name for name in ("chat_template", "padding_side") if context.request.asked(name)]
    if kind == "none" and unused:
        problems.append(
            _problem(
                "processing-option-unused",
                f"{' and '.join(unused)} was given, but there is no tokenizer or processor to set it on",
                f"leave {' and '.join(unused)} out",
            )
        )
    return problems


def _own(checkpoint: Checkpoint, architecture: ModelClass) -> tuple[Kind, str]:
    if architecture.task == "image-text-to-text" and _has(checkpoint, "processor"):
        return "processor", "the model takes images and text"
    if _has(checkpoint, "tokenizer"):
        return (
            "tokenizer",
            "the model takes text"
            if architecture.task != "image-text-to-text"
            else "the checkpoint has no processor",
        )
    return "none", "the checkpoint has neither"


def _has(checkpoint: Checkpoint, kind: str) -> bool:
    return any(
        checkpoint.has_file(name) for name in (TOKENIZER_FILES if kind == "tokenizer" else PROCESSOR_FILES)
    )


def _value(kind: Kind, context: Context) -> Processing:
    if kind == "none":
        return Processing(kind="none")
    request, registered = context.request, context.registered
    return Processing(
        kind=kind,
        source=context.checkpoint.location,
        revision=context.checkpoint.commit,
        processing_class=registered.processing_class if registered else "",
        chat_template=request.value("chat_template"),
        padding_side=request.value("padding_side"),
    )


def _problem(code: str, message: str, remedy: str, **more: Any) -> Problem:
    return Problem(stage="processing", plugin="processing", code=code, message=message, remedy=remedy, **more)
