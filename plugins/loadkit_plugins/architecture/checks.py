"""What can't work about the chosen class, and why none was found."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial

from loadkit import Context, Plan, Problem
from loadkit_plugins.architecture.labels import check_labels
from loadkit_plugins.architecture.tasks import TASKS, asked_task, class_for, model_type_of

__all__ = ["check", "explain"]

_problem = partial(Problem, "architecture", "architecture")

SCORES = "sequence-classification"
TIED = "tie_word_embeddings"
TEXTS = ("causal-lm", "seq2seq-lm", "image-text-to-text")
CLASSIFIER = re.compile(r"For(Sequence|Token)Classification$")
OUTPUT = re.compile(r"(^|\.)(lm_head|embed_out|output|output_layer|generator)\.")


def check(context: Context, plan: Plan) -> Sequence[Problem]:
    """Every problem of the chosen class."""
    remote = plan.model_class.implementation == "remote code"
    return [
        *_code_selected(context),
        *_other_config(context, plan),
        *_other_task(context, plan),
        *_other_class(context, plan),
        *_rewards(context, plan),
        *_without_head(context, plan),
        *check_labels(context, plan),
        *(_unpinned(context) if remote else _consent_unused(context, plan)),
    ]


def _consent_unused(context: Context, plan: Plan) -> Iterator[Problem]:
    if context.request.value("trust_remote_code", False):
        own = f"{plan.model_class.model_class} of {plan.model_class.implementation} serves, and is preferred"
        yield _problem(
            "remote-code-unused",
            f"trust_remote_code was given, but no code of the checkpoint's runs: {own}",
            "leave trust_remote_code out",
            severity="note",
        )


def _other_task(context: Context, plan: Plan) -> Iterator[Problem]:
    """A plugin chose a class for another task than the one demanded."""
    asked, decision = context.request.asked("task"), plan.why("architecture")
    if asked is None or not asked.demanded or plan.model_class.task == asked_task(context):
        return
    yield _problem(
        "other-task",
        f"you asked for task {asked.value!r}, and plugin {decision.plugin!r} chose {plan.model_class.model_class} for "
        f"{plan.model_class.task}: {decision.because}",
        f"leave task out, or go without that plugin: LOADKIT_DISABLE={decision.plugin}",
    )


def _rewards(context: Context, plan: Plan) -> Iterator[Problem]:
    """A reward trainer's config beside a model that gives texts: TRL refuses it once it is loaded."""
    if "RewardConfig" in context.request.value("trainer_fields", ()) and plan.model_class.task != SCORES:
        yield _problem(
            "reward-without-head",
            f"the trainer's config is a RewardConfig, whose trainer scores texts, and {plan.model_class.model_class} is for "
            f"{plan.model_class.task} ({plan.why('architecture').because})",
            f"give task={SCORES!r} and num_labels=1",
        )


def _without_head(context: Context, plan: Plan) -> Iterator[Problem]:
    """A classifier's files, loaded as a model that gives texts: its output head would be random."""
    checkpoint, chosen = context.checkpoint, plan.model_class
    made_for = next((name for name in checkpoint.architectures if CLASSIFIER.search(name)), "")
    tied = checkpoint.text_config.get(TIED, checkpoint.config.get(TIED))
    allowed = context.request.value("allow_weights", ())
    if (
        made_for
        and chosen.task in TEXTS
        and tied is False
        and checkpoint.tensors
        and not allowed
        and not any(OUTPUT.search(name) for name in checkpoint.tensors)
    ):
        yield _problem(
            "head-missing",
            f"{checkpoint.location!r} holds a {made_for}, and {chosen.model_class} was asked for ({plan.why('architecture').because}): "
            "there is no output head in the files, and it would be random",
            'leave task out, or name a model that gives texts; allow_weights=["lm_head"] lets pass what you mean to train anew',
        )


def _other_class(context: Context, plan: Plan) -> Iterator[Problem]:
    """Another class loads it than the one that was expected."""
    asked, chosen = context.request.asked("model_class"), plan.model_class.model_class
    if asked is None or asked.value == chosen:
        return
    yield _problem(
        "other-class",
        f"{asked.value} was expected to load it ({asked.because}), and {chosen} does: {plan.why('architecture').because}",
        "leave it out, or name a checkpoint of that class",
        severity="error" if asked.demanded else "warning",
    )


def _other_config(context: Context, plan: Plan) -> Iterator[Problem]:
    """A class that is made from a part of the config, and given the whole: musicgen's decoder."""
    chosen, library = plan.model_class, context.library
    facts = library.class_facts(chosen.model_class)
    own = library.config_classes.get(model_type_of(context), "")
    automatic = chosen.implementation == "transformers" and chosen.auto_class
    if not automatic or facts is None or not facts.config_class:
        return
    config = library.config_facts(own)
    made_of = config.sub_config_classes if config else {}
    parts = [key for key, name in made_of.items() if name == facts.config_class]
    if not parts or "text_config" in parts:  # the Auto class hands a text_config over by itself
        return
    yield _problem(
        "class-of-a-part",
        f"{chosen.auto_class} serves model type {model_type_of(context)!r} with {chosen.model_class}, which is made from the "
        f"{' or '.join(parts)} part of a {own} and is given the whole: transformers can't load it",
        f"load it with its own class ({', '.join(context.checkpoint.architectures) or 'see its model card'})",
    )


def _unpinned(context: Context) -> Iterator[Problem]:
    """Code that may run is code that somebody has read: this folder's, or that of one commit."""
    checkpoint = context.checkpoint
    elsewhere = sorted({str(v).split("--")[0] for v in checkpoint.auto_map.values() if "--" in str(v)})
    if elsewhere:
        yield _problem(
            "remote-code-elsewhere",
            f"config.json takes its code from {', '.join(elsewhere)}, which no commit of {checkpoint.location!r} pins",
            "download the checkpoint and that code into one folder, read it, and load the folder",
        )
    if checkpoint.kind != "folder" and checkpoint.revision != checkpoint.commit:
        yield _problem(
            "remote-code-unpinned",
            f"the code of {checkpoint.location!r} would run as {checkpoint.revision or 'the default branch'!r} has it today, which can change",
            f"read the code at that commit, then pin it: revision={checkpoint.commit!r}",
        )


def _code_selected(context: Context) -> Iterator[Problem]:
    """Fields of config.json that would fetch and run code: kernels on the Hub (CVE-2026-4372)."""
    configs = {"config.json": context.checkpoint.config, **dict(context.checkpoint.sub_configs())}
    found = [
        f"{key}={value!r} in {where}"
        for where, config in configs.items()
        for key, value in config.items()
        if (key.endswith(("_implementation", "_implementation_internal")) and "/" in str(value))
        or (key in ("kernel_config", "use_kernels") and value)
    ]
    if not found:
        return
    yield _problem(
        "config-selects-code",
        f"the checkpoint's config names kernels to fetch from the Hub: {', '.join(found)}",
        "remove that from config.json; attn_implementation='owner/kernel' asks for one by name",
    )


def explain(context: Context) -> Problem:
    """Why no class was found, and what would help."""
    checkpoint, library = context.checkpoint, context.library
    model_type, task = model_type_of(context), context.request.value("task", "")
    possible = [t for t in TASKS if class_for(context, t) is not None]
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
        modules = {str(value).split("--")[-1].split(".")[0] for value in checkpoint.auto_map.values()}
        code = ", ".join(sorted(f"{module}.py" for module in modules))
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
