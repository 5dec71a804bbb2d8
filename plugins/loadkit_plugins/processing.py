"""processing: the model's tokenizer or processor, at its commit, with its template and padding side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal

import msgspec

from loadkit import Claim, Context, ModelClass, Option, Plan, Problem, Processing, Reading, Strength, hookimpl
from loadkit.plugins import ProcessingFacts, Template, template_fault, tokenizer_of
from loadkit_plugins import mistral_common

_problem = partial(Problem, "processing", "processing")

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model",
    "sentencepiece.bpe.model", "tekken.json",
)  # fmt: skip
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
SETTINGS = ("chat_template", "padding_side", "use_fast")

REGISTERED = "a plugin's architecture"
"""Origin of a template that came with the architecture."""

BACKENDS = {True: "torchvision", False: "pil"}
"""Of image processors, by `use_fast`."""

Kind = Literal["tokenizer", "processor", "none"]


@hookimpl
def loadkit_options() -> Sequence[Option]:
    def option(name: str, kind: str, line: str, **more: Any) -> Option:
        return Option(name=name, type=kind, help=line, stage="processing", **more)

    return [
        option(
            "processing_class",
            "str",
            "what to load beside the model; by default a processor for multimodal models, else a tokenizer",
            choices=("auto", "tokenizer", "processor", "none"),
        ),
        option(
            "padding_side",
            "str",
            "the side that padding goes to; by default the tokenizer's own",
            choices=("left", "right"),
        ),
        option(
            "use_fast",
            "bool",
            "image processors: torchvision's (true) or PIL's (false); tokenizers have one implementation each",
        ),
        option(
            "tokenizer_backend",
            "str",
            "whose tokenizer reads the files: transformers' own (the default), or Mistral's, of the package mistral-common",
            choices=mistral_common.BACKENDS,
        ),
        option("chat", "bool", "the data or prompts are conversations: a missing chat template is an error"),
    ]


@hookimpl
def loadkit_choose_processing(context: Context, architecture: ModelClass) -> Sequence[Claim[Processing]]:
    kind, because = _own(context, architecture)
    backend = context.request.asked("tokenizer_backend")
    mistral = (
        backend is not None and backend.value == "mistral-common" and not any(mistral_common.missing(context))
    )
    if mistral and backend is not None:
        kind, because = "tokenizer", f"Mistral's own tokenizer: {backend.because}{_whose(context)}"
    asked = context.request.asked("processing_class")
    fallback = _claim(kind, because, Strength.FALLBACK, context, mistral=mistral)
    if asked is None or asked.value == "auto":
        return [fallback]
    with_it = mistral and asked.value == "tokenizer"
    return [_claim(asked.value, asked.because, asked.strength, context, mistral=with_it), fallback]


def _claim(
    kind: Kind, because: str, strength: Strength, context: Context, *, mistral: bool
) -> Claim[Processing]:
    value = _value(kind, context)
    if mistral and value.kind == "tokenizer":
        about = mistral_common.mistral_common_settings(context)
        value = msgspec.structs.replace(value, chat_template=None, template_origin="", **about)
    return Claim(value=value, because="; ".join([because, *_reasons(value, context)]), strength=strength)


@hookimpl
def loadkit_check_plan(context: Context, plan: Plan) -> Sequence[Problem]:
    return [*_problems(context, plan), *mistral_common.mistral_common_problems(context, plan)]


@hookimpl
def loadkit_read_back(plan: Plan, processing_class: Any) -> Sequence[Reading]:
    return list(_readings(plan.processing, processing_class))


def _readings(planned: Processing, loaded: Any) -> Iterator[Reading]:
    """Whether there is one, and its template, padding side and backend."""
    about = partial(Reading, stage="processing", verbatim=False)
    yield about(
        names=("processing_class",),
        where="the tokenizer or processor",
        planned="one" if planned.kind != "none" else "none",
        effective="none" if loaded is None else "one",
    )
    if loaded is None:
        return
    tokenizer = tokenizer_of(loaded)
    mistrals = type(tokenizer).__name__ == mistral_common.CLASS.rpartition(":")[2]
    if planned.kind == "tokenizer":
        yield about(
            names=("tokenizer_backend",),
            where="the tokenizer's class",
            planned=mistral_common.BACKENDS[mistral_common.is_mistral_common(planned)],
            effective=mistral_common.BACKENDS[mistrals],
        )
    if planned.padding_side is not None:
        side = getattr(tokenizer, "padding_side", None)
        yield about(
            names=("padding_side",),
            where="tokenizer.padding_side",
            planned=planned.padding_side,
            effective=side,
            verbatim=True,
        )
    if planned.chat_template is not None:
        for name, holder in {"processing_class": loaded, "tokenizer": tokenizer}.items():
            yield about(
                names=("chat_template",),
                where=f"{name}.chat_template",
                planned=planned.chat_template,
                effective=getattr(holder, "chat_template", None),
            )
    if "backend" in planned.options and (images := getattr(loaded, "image_processor", None)) is not None:
        yield about(
            names=("use_fast",),
            where="image_processor.backend",
            planned=planned.options["backend"],
            effective=getattr(images, "backend", None),
        )


def _problems(context: Context, plan: Plan) -> Iterator[Problem]:
    kind, facts = plan.processing.kind, context.processing
    demanded = plan.why("processing").strength is not Strength.FALLBACK
    beside = list(_other_tokenizer(context, kind))
    yield from beside
    if demanded and kind != "none" and not _has(facts, kind):
        wanted = TOKENIZER_FILES if kind == "tokenizer" else PROCESSOR_FILES
        yield _problem(
            "no-tokenizer" if kind == "tokenizer" else "no-processor",
            f"a {kind} was asked for, and {facts.location} has none of {', '.join(wanted)}",
            "leave processing_class out, or save one beside the model",
        )
    if kind == "none" and not demanded and not beside:
        yield _problem(
            "no-processing-class",
            f"{facts.location} has no tokenizer and no processor, so processing_class is None",
            "save one beside the model, or name another's with tokenizer=…",
            severity="warning",
        )
    unused = [name for name in SETTINGS if (asked := context.request.asked(name)) and asked.demanded]
    if kind == "none" and unused:
        yield _problem(
            "processing-option-unused",
            f"{' and '.join(unused)} was given, but there is no tokenizer or processor to set it on",
            f"leave {' and '.join(unused)} out",
        )
    fast = context.request.asked("use_fast")
    demanded_fast = fast is not None and fast.demanded and fast.value
    if kind == "processor" and demanded_fast and context.machine.version("torchvision") is None:
        yield _problem(
            "no-torchvision",
            "use_fast=True was asked for, which takes torchvision, and it isn't installed",
            "pip install torchvision, or leave use_fast out",
        )
    yield from _template_problems(context, plan.processing)


def _other_tokenizer(context: Context, kind: str) -> Iterator[Problem]:
    """Another tokenizer was named, and nothing will come of it."""
    asked, facts = context.request.asked("tokenizer"), context.beside.tokenizer
    if asked is None or kind != "none":
        return
    if facts is not None and not _has(facts, "tokenizer") and not _has(facts, "processor"):
        yield _problem(
            "no-tokenizer",
            f"tokenizer={asked.value!r} was asked for ({asked.because}), and it has none of {', '.join(TOKENIZER_FILES)}",
            "name a folder or repository that has a tokenizer, or leave tokenizer out to use the model's own",
        )
        return
    given = context.request.asked("processing_class")
    if given is not None and given.demanded and asked.demanded:
        yield _problem(
            "processing-option-unused",
            f"tokenizer={asked.value!r} was given, and processing_class={given.value!r} too, so that it isn't loaded",
            "leave one of the two out",
        )


def _template_problems(context: Context, processing: Processing) -> Iterator[Problem]:
    """What the user should know of the chat template: that it is replaced, or that there is none."""
    own, chat = context.processing.chat_template, context.request.asked("chat")
    if processing.kind == "none":
        return
    if processing.chat_template is not None:
        asked = context.request.asked("chat_template")
        if asked is not None and (fault := template_fault(processing.chat_template)):
            yield _problem(
                "bad-template",
                f"chat_template={asked.value[:60]!r} was asked for ({asked.because}), and it isn't a chat template in Jinja: {fault}",
                "correct it, or leave chat_template out",
            )
            return
        if own is None or own == processing.chat_template:
            return
        yield _problem(
            "template-replaced",
            f"{context.processing.location} has a chat template, which is replaced: {asked.because if asked else 'a plugin chose another'}",
            "leave chat_template out to keep the one that the model was trained with",
            severity="warning",
        )
        return
    if own is None and chat is not None and chat.value and not mistral_common.is_mistral_common(processing):
        yield _problem(
            "no-chat-template",
            f"{chat.by} said that the data are conversations, and {context.processing.location} has no chat template",
            "give chat_template=…: Jinja text, a file, or a checkpoint of the same family that has one",
        )
        return


def _own(context: Context, architecture: ModelClass) -> tuple[Kind, str]:
    facts = context.processing
    whose = _whose(context)
    if architecture.task == "image-text-to-text" and _has(facts, "processor"):
        return "processor", f"the model takes images and text{whose}"
    if _has(facts, "tokenizer"):
        multimodal = architecture.task == "image-text-to-text"
        return "tokenizer", (
            f"{facts.location} has no processor" if multimodal else "the model takes text"
        ) + whose
    return "none", f"{facts.location} has neither tokenizer nor processor"


def _whose(context: Context) -> str:
    """Where it comes from, if not from the model's own place."""
    if context.beside.tokenizer is not None:
        asked = context.request.asked("tokenizer")
        return f"; from {context.processing.location}: {asked.because if asked else ''}"
    if context.processing is not context.checkpoint.processing:
        return "; the adapter was saved with its own"
    return ""


def _reasons(value: Processing, context: Context) -> list[str]:
    """A reason for everything that is set on it."""
    if value.kind == "none":
        return []
    names = [name for name in SETTINGS if context.request.asked(name)]
    said = [f"{name}: {asked.because}" for name in names if (asked := context.request.asked(name))]
    if value.template_origin == REGISTERED:
        said.append(f"it has no chat template: a plugin registered one for {context.checkpoint.model_type!r}")
    elif mistral_common.is_mistral_common(value):
        said.append("it writes conversations itself, without a template")
    elif value.chat_template is None and context.processing.chat_template is not None:
        said.append("it keeps its chat template")
    elif value.chat_template is None:
        said.append("it has no chat template, so conversations need chat_template=…")
    return said


def _has(facts: ProcessingFacts, kind: str) -> bool:
    if kind == "tokenizer" and facts.gguf_file:
        return True
    return any(name in facts.files for name in (TOKENIZER_FILES if kind == "tokenizer" else PROCESSOR_FILES))


def _value(kind: Kind, context: Context) -> Processing:
    if kind == "none":
        return Processing(kind="none")
    request, registered, facts = context.request, context.registered, context.processing
    template = context.beside.template
    # The family's own tokenizer only: another's may lack the template's tokens.
    lacks = template is None and context.beside.tokenizer is None and facts.chat_template is None
    if lacks and registered is not None and registered.chat_template:
        template = Template(text=registered.chat_template, origin=REGISTERED)
    # transformers 5 has one implementation of each tokenizer, and calls those of image processors "backend".
    fast = request.value("use_fast")
    backend = {} if fast is None or kind != "processor" else {"backend": BACKENDS[fast]}
    return Processing(
        kind=kind,
        source=facts.location,
        revision=facts.commit,
        processing_class=registered.processing_class if registered else "",
        chat_template=template.text if template else None,
        template_origin=template.origin if template else "",
        padding_side=request.value("padding_side"),
        options={
            **backend,
            **(mistral_common.kept_out(context) if kind == "tokenizer" else {}),
            **({"gguf_file": facts.gguf_file} if facts.gguf_file else {}),
        },
    )
