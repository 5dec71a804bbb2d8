"""transformers' own class for a checkpoint, and its language model alone."""

from __future__ import annotations

from collections.abc import Mapping

from loadkit import Asked, Claim, Context, ModelClass, Strength
from loadkit_plugins.architecture.labels import adapter_task
from loadkit_plugins.architecture.tasks import TASKS, TEXT, class_for, model_type_of

__all__ = ["native"]

TEXT_LAYOUTS: Mapping[str, Mapping[str, str]] = {
    "model.language_model.": {r"^model\.language_model\.": "model."},
    "language_model.model.": {
        r"^language_model\.model\.": "model.",
        r"^language_model\.lm_head\.": "lm_head.",
    },
    "model.text_model.": {r"^model\.text_model\.": "model."},
}
"""How vision-language checkpoints name their language model's tensors, and how its own class names them."""


def native(context: Context) -> Claim[ModelClass] | None:
    """transformers' class for the task asked for, or for the one of the config; None where it has none."""
    asked = context.request.asked("task")
    if asked is not None and asked.value == TEXT:
        return _text(context, asked)
    brought = "" if asked is not None else adapter_task(context)
    if brought and class_for(context, brought) is not None:
        task, because = brought, "the adapter was made for it, and brings the head"
    else:
        task, because = (asked.value, asked.because) if asked is not None else _inferred(context)
    name = class_for(context, task) if task else None
    if name is None:
        return None
    value = ModelClass(task=task, auto_class=TASKS[task], model_class=name)
    return Claim(value=value, because=because, strength=_strength(context, asked, task))


def _strength(context: Context, asked: Asked | None, task: str) -> Strength:
    """The strength of whoever asked for the task; the lowest where a plugin has classes for it too.

    That the task is kept is looked at in `checks`.
    """
    registered = context.registered
    if asked is None or (registered is not None and task in registered.models):
        return Strength.FALLBACK
    return asked.strength


def _inferred(context: Context) -> tuple[str, str]:
    """The task of a checkpoint by what its config names, and why; ("", "") where none fits.

    Fourteen model types are both causal and image-text-to-text in transformers' maps, so membership alone
    decides
    nothing: the class that `architectures` names does, and without one the presence of a vision part.
    """
    checkpoint = context.checkpoint
    possible = {task: name for task in TASKS if (name := class_for(context, task)) is not None}
    matching = [task for task, name in possible.items() if name in checkpoint.architectures]
    if matching:
        # One class may serve both kinds (Gemma3ForConditionalGeneration does): then it is the richer one.
        task = "image-text-to-text" if "image-text-to-text" in matching else matching[0]
        return task, f"config.json names {possible[task]}"
    named = f"config.json names {', '.join(checkpoint.architectures) or 'no class'}"
    for task in ("image-text-to-text", "causal-lm", "seq2seq-lm"):
        if task in possible:
            return task, f"{named}; {checkpoint.model_type} is {possible[task]} for {task}"
    only = f"{named}; it is the only task of {checkpoint.model_type}"
    return next(((task, only) for task in possible), ("", ""))


def _text(context: Context, asked: Asked) -> Claim[ModelClass] | None:
    """The language model alone: transformers' causal class, where it isn't the vision-language one itself."""
    model_type = model_type_of(context)
    causal, whole = class_for(context, "causal-lm"), class_for(context, "image-text-to-text")
    inner = context.library.text_class(model_type, context.checkpoint.config)
    if causal is not None and causal != whole:
        value = ModelClass(task="causal-lm", auto_class=TASKS["causal-lm"], model_class=causal)
        because = (
            f"{causal} is the language model of {model_type}"
            if whole
            else f"{model_type} is a text model already"
        )
    elif inner is not None:
        name, key = inner
        names = _text_layout(context)
        value = ModelClass(
            task="causal-lm", auto_class="", model_class=name, config_key=key, key_mapping=names
        )
        because = f"{name} is the language model of {model_type}"
    else:
        return None
    strength = _strength(context, asked, value.task)
    return Claim(value=value, because=f"{asked.because}; {because}", strength=strength)


def _text_layout(context: Context) -> dict[str, str]:
    for prefix, mapping in TEXT_LAYOUTS.items():
        if any(name.startswith(prefix) for name in context.checkpoint.tensors):
            return dict(mapping)
    return {}
