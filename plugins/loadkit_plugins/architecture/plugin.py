"""architecture: which class loads the checkpoint.

In this order: a family that a plugin registered (where transformers has none, or where it is preferred), transformers' own
class by the checkpoint's `architectures` and the user's `task`, the checkpoint's own code with the user's consent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from loadkit import Architecture, Asked, Claim, Context, ModelClass, Option, Plan, Problem, Strength, hookimpl
from loadkit_plugins.architecture.labels import adapter_task, check_labels, label_claims
from loadkit_plugins.architecture.tasks import TASKS

_problem = partial(Problem, "architecture", "architecture")

TEXT = "text"
"""The task that means: the language model alone, of a vision-language checkpoint too."""

TEXT_LAYOUTS: Mapping[str, Mapping[str, str]] = {
    "model.language_model.": {r"^model\.language_model\.": "model."},
    "language_model.model.": {
        r"^language_model\.model\.": "model.",
        r"^language_model\.lm_head\.": "lm_head.",
    },
    "model.text_model.": {r"^model\.text_model\.": "model."},
}
"""How vision-language checkpoints name their language model's tensors, and how its own class names them."""


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
    registered = context.registered
    native = _native(context)
    if registered is not None and (registered.preferred or native is None):
        found = _registered(context, registered)
        if found is not None:
            return found
    if native is not None:
        return native
    if context.request.value("trust_remote_code", False):
        found = _remote(context)
        if found is not None:
            return found
    return _explain(context)


@hookimpl
def loadkit_check_plan(context: Context, plan: Plan) -> Sequence[Problem]:
    problems = [*_code_selected(context), *_other_config(context, plan), *_other_task(context, plan)]
    problems += check_labels(context, plan)
    if plan.model_class.implementation == "remote code":
        return [*problems, *_unpinned(context)]
    if context.request.value("trust_remote_code", False):
        own = f"{plan.model_class.model_class} of {plan.model_class.implementation} serves, and is preferred"
        problems.append(
            _problem(
                "remote-code-unused",
                f"trust_remote_code was given, but no code of the checkpoint's runs: {own}",
                "leave trust_remote_code out",
                severity="note",
            )
        )
    return problems


def _other_task(context: Context, plan: Plan) -> list[Problem]:
    """A plugin chose a class for another task than the one demanded."""
    asked, decision = context.request.asked("task"), plan.why("architecture")
    if asked is None or not asked.demanded or plan.model_class.task == _task(context):
        return []
    return [
        _problem(
            "other-task",
            f"you asked for task {asked.value!r}, and plugin {decision.plugin!r} chose {plan.model_class.model_class} for "
            f"{plan.model_class.task}: {decision.because}",
            f"leave task out, or go without that plugin: LOADKIT_DISABLE={decision.plugin}",
        )
    ]


def _other_config(context: Context, plan: Plan) -> list[Problem]:
    """A class that is made from another config than the checkpoint's: musicgen's decoder, which the Auto class gives the whole."""
    chosen, library = plan.model_class, context.library
    facts = library.class_facts(chosen.model_class)
    own = library.config_classes.get(_model_type(context), "")
    if (
        chosen.implementation != "transformers"
        or not chosen.auto_class
        or facts is None
        or not facts.config_class
    ):
        return []
    config = library.config_facts(own)
    made_of = config.sub_config_classes if config else {}
    parts = [key for key, name in made_of.items() if name == facts.config_class]
    if not parts or "text_config" in parts:  # the Auto class hands a text_config over by itself
        return []
    return [
        _problem(
            "class-of-a-part",
            f"{chosen.auto_class} serves model type {_model_type(context)!r} with {chosen.model_class}, which is made from the "
            f"{' or '.join(parts)} part of a {own} and is given the whole: transformers can't load it",
            f"load it with its own class ({', '.join(context.checkpoint.architectures) or 'see its model card'})",
        )
    ]


def _unpinned(context: Context) -> list[Problem]:
    """Code that may run is code that somebody has read: this folder's, or that of one commit of this repository."""
    checkpoint = context.checkpoint
    problems = []
    elsewhere = sorted({str(v).split("--")[0] for v in checkpoint.auto_map.values() if "--" in str(v)})
    if elsewhere:
        problems.append(
            _problem(
                "remote-code-elsewhere",
                f"config.json takes its code from {', '.join(elsewhere)}, which no commit of {checkpoint.location!r} pins",
                "download the checkpoint and that code into one folder, read it, and load the folder",
            )
        )
    if checkpoint.kind == "hub" and checkpoint.revision != checkpoint.commit:
        problems.append(
            _problem(
                "remote-code-unpinned",
                f"the code of {checkpoint.location!r} would run as {checkpoint.revision or 'the default branch'!r} has it today, which can change",
                f"read the code at that commit, then pin it: revision={checkpoint.commit!r}",
            )
        )
    return problems


def _code_selected(context: Context) -> list[Problem]:
    """Fields of config.json that would fetch and run code: kernels on the Hub (CVE-2026-4372 was such a field)."""
    configs = {"config.json": context.checkpoint.config, **dict(context.checkpoint.sub_configs())}
    found = [
        f"{key}={value!r} in {where}"
        for where, config in configs.items()
        for key, value in config.items()
        if (key.endswith(("_implementation", "_implementation_internal")) and "/" in str(value))
        or (key in ("kernel_config", "use_kernels") and value)
    ]
    if not found:
        return []
    return [
        _problem(
            "config-selects-code",
            f"the checkpoint's config names kernels to fetch from the Hub: {', '.join(found)}",
            "remove that from config.json; attn_implementation='owner/kernel' asks for one by name",
        )
    ]


def _registered(context: Context, registered: Architecture) -> Claim[ModelClass] | None:
    wanted = _task(context)
    tasks = [wanted] if wanted else [t for t in TASKS if t in registered.models]
    for task in tasks:
        if task in registered.models:
            return Claim(
                value=ModelClass(
                    task=task,
                    auto_class="",
                    model_class=registered.models[task],
                    implementation="plugin",
                    config_class=registered.config,
                ),
                because=f"a plugin registered model type {registered.model_type!r}"
                + (", preferred to transformers' own" if registered.preferred else ""),
                strength=Strength.FALLBACK,
            )
    return None


def _native(context: Context) -> Claim[ModelClass] | None:
    asked = context.request.asked("task")
    if asked is not None and asked.value == TEXT:
        return _text(context)
    brought = "" if asked is not None else adapter_task(context)
    if brought and _class(context, brought) is not None:
        task, because = brought, "the adapter was made for it, and brings the head"
    else:
        task, because = (asked.value, asked.because) if asked is not None else _inferred(context)
    if not task:
        return None
    name = _class(context, task)
    if name is None:
        return None
    return Claim(
        value=ModelClass(task=task, auto_class=TASKS[task].auto_class, model_class=name),
        because=because,
        strength=_strength(context, asked, task),
    )


def _strength(context: Context, asked: Asked | None, task: str) -> Strength:
    """The strength of whoever asked for the task; a task that a plugin's classes serve too doesn't tell whose are meant.

    That the task is kept, whoever serves, is looked at in `_other_task`.
    """
    registered = context.registered
    if asked is None or (registered is not None and task in registered.models):
        return Strength.FALLBACK
    return asked.strength


def _task(context: Context) -> str:
    task: str = context.request.value("task", "")
    return "causal-lm" if task == TEXT else task


def _model_type(context: Context) -> str:
    return context.library.model_type_of(context.checkpoint.config)


def _class(context: Context, task: str) -> str | None:
    return context.library.model_class(
        TASKS[task].auto_class, _model_type(context), context.checkpoint.architectures
    )


def _inferred(context: Context) -> tuple[str, str]:
    """The task of a checkpoint by what its config names; ("", "") where none fits.

    Fourteen model types are both causal and image-text-to-text in transformers' maps, so membership decides nothing by
    itself: the class that `architectures` names does, and without one the presence of a vision part.
    """
    checkpoint = context.checkpoint
    possible = {task: name for task in TASKS if (name := _class(context, task)) is not None}
    matching = [task for task, name in possible.items() if name in checkpoint.architectures]
    if matching:
        # One class may serve both kinds (Gemma3ForConditionalGeneration does): then it is the richer one.
        task = "image-text-to-text" if "image-text-to-text" in matching else matching[0]
        return task, f"config.json names {possible[task]}"
    named = (
        f"config.json names {', '.join(checkpoint.architectures)}"
        if checkpoint.architectures
        else "config.json names no class"
    )
    for task in ("image-text-to-text", "causal-lm", "seq2seq-lm"):
        if task in possible:
            return task, f"{named}; {checkpoint.model_type} is {possible[task]} for {task}"
    return next(
        ((task, f"{named}; it is the only task of {checkpoint.model_type}") for task in possible), ("", "")
    )


def _text(context: Context) -> Claim[ModelClass] | None:
    """The language model alone. transformers' causal class serves where it isn't the vision-language one itself."""
    asked = context.request.asked("task")
    assert asked is not None
    model_type = _model_type(context)
    causal, whole = _class(context, "causal-lm"), _class(context, "image-text-to-text")
    inner = context.library.text_class(model_type, context.checkpoint.config)
    if causal is not None and causal != whole:
        value = ModelClass(task="causal-lm", auto_class=TASKS["causal-lm"].auto_class, model_class=causal)
        because = (
            f"{causal} is the language model of {model_type}"
            if whole
            else f"{model_type} is a text model already"
        )
    elif inner is not None:
        name, config_key = inner
        value = ModelClass(
            task="causal-lm",
            auto_class="",
            model_class=name,
            config_key=config_key,
            key_mapping=_text_layout(context),
        )
        because = f"{name} is the language model of {model_type}"
    else:
        return None
    strength = _strength(context, asked, value.task)
    return Claim(value=value, because=f"{asked.because}; {because}", strength=strength)


def _text_layout(context: Context) -> dict[str, str]:
    tensors = context.checkpoint.tensors
    for prefix, mapping in TEXT_LAYOUTS.items():
        if any(name.startswith(prefix) for name in tensors):
            return dict(mapping)
    return {}


def _remote(context: Context) -> Claim[ModelClass] | None:
    """The checkpoint's own class, which runs its code: only ever reached with consent."""
    auto_map = context.checkpoint.auto_map
    wanted = _task(context)
    for task in [wanted] if wanted else list(TASKS):
        reference = auto_map.get(TASKS[task].auto_class)
        if isinstance(reference, str):
            return Claim(
                value=ModelClass(
                    task=task,
                    auto_class=TASKS[task].auto_class,
                    model_class=reference.split("--")[-1],
                    implementation="remote code",
                    code=context.beside.code,
                ),
                because=f"transformers has no {context.checkpoint.model_type!r}; "
                f"the checkpoint brings {reference}, and trust_remote_code was given",
                strength=Strength.FALLBACK,
            )
    return None


def _explain(context: Context) -> Problem:
    """Why no class was found, and what would help."""
    checkpoint, library = context.checkpoint, context.library
    model_type, task = _model_type(context), context.request.value("task", "")
    possible = [t for t in TASKS if _class(context, t) is not None]
    if not library.version:
        return _problem("no-transformers", "transformers isn't installed", "pip install transformers")
    if not model_type:
        return _problem(
            "no-model-type",
            "config.json has no model_type, so nothing tells what kind of model this is",
            "add model_type to config.json; a folder that save_pretrained wrote has it",
        )
    if task and possible:
        return _problem(
            "no-class-for-task",
            f"you asked for task {task!r}, which transformers {library.version} has no class for with {model_type!r}",
            f"it has {', '.join(possible)}",
        )
    if checkpoint.auto_map:
        code = ", ".join(
            sorted({str(v).split("--")[-1].split(".")[0] + ".py" for v in checkpoint.auto_map.values()})
        )
        return _problem(
            "remote-code-needed",
            f"transformers {library.version} has no class for model type {model_type!r}; the checkpoint brings its own code ({code})",
            "read that code, then pass trust_remote_code=True; or install a loadkit plugin that registers the model type",
        )
    if library.knows(model_type):
        return _problem(
            "no-class",
            f"transformers {library.version} knows model type {model_type!r}, but none of its Auto classes for "
            f"{', '.join(TASKS)} loads it",
            "load it with its own class; loadkit is for language and vision-language models",
        )
    near = library.nearest(model_type)
    return _problem(
        "unknown-model-type",
        f"nobody knows model type {model_type!r}{f' (did you mean {near!r}?)' if near else ''}: not transformers "
        f"{library.version}, no plugin, and the checkpoint brings no code of its own",
        "upgrade transformers, or install or write a loadkit plugin that registers it (loadkit_architectures)",
    )
