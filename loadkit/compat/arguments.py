"""Argument objects of trainers, read as loadkit's options, without importing TRL or transformers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from loadkit.errors import LoadkitError
from loadkit.facts.machine.machine import read_machine
from loadkit.request.recipes import Recipe
from loadkit.request.trainer_fields import LEFT_TO_THE_TRAINER, TRAINER_FIELDS

__all__ = ["LORA_FIELDS", "from_model_config", "from_training_arguments", "given", "recipe_of"]

MODEL_FIELDS: Mapping[str, str] = {
    "model_revision": "revision",
    "attn_implementation": "attn_implementation",
    "trust_remote_code": "trust_remote_code",
    "load_in_4bit": "load_in_4bit",
    "load_in_8bit": "load_in_8bit",
}
FOUR_BIT_FIELDS: Mapping[str, str] = {
    "bnb_4bit_quant_type": "bnb_4bit_quant_type",
    "use_bnb_nested_quant": "bnb_4bit_use_double_quant",
    "bnb_4bit_quant_storage": "bnb_4bit_quant_storage",
}
LORA_FIELDS: Mapping[str, str] = {
    "lora_r": "r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "lora_target_modules": "target_modules",
    "lora_target_parameters": "target_parameters",
    "lora_modules_to_save": "modules_to_save",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
}
"""Field of TRL's ModelConfig to field of PEFT's LoraConfig."""

TRAINING_FIELDS: Mapping[str, str] = {
    "chat_template": "chat_template",
    "chat_template_path": "chat_template",
    "eos_token": "eos_token",
    "pad_token": "pad_token",
    "trust_remote_code": "trust_remote_code",
    "num_labels": "num_labels",
}
"""Field of a trainer's config to loadkit's option."""

INIT_FIELDS = (
    "attn_implementation", "revision", "trust_remote_code", "device_map", "max_memory", "quantization_config", "num_labels",
)  # fmt: skip
"""What of `model_init_kwargs` is an option of that name; dtype aside, the rest are model_kwargs."""

CHECKPOINTING = {
    "gradient_checkpointing": ("gradient_checkpointing", "activation_checkpointing"),
    "gradient_checkpointing_kwargs": ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"),
}
"""Option to the fields for it: before and after transformers renamed them."""

TAKEN = (
    *TRAINING_FIELDS,
    "optim",
    "model_init_kwargs",
    *(name for names in CHECKPOINTING.values() for name in names),
)
"""Every field of a trainer's config that becomes an option."""

DTYPE_FIELDS = ("dtype", "torch_dtype")
"""What the field is called today, and what it was called before transformers 4.56 and TRL 0.24."""


def from_model_config(model_args: Any) -> dict[str, Any]:
    """The options that a TRL `ModelConfig` (or an older `ModelArguments`) asks for, the adapter's aside.

    Parameters:
        model_args: any object with its fields; `dtype` may be called `torch_dtype`.
    """
    options = given(model_args, MODEL_FIELDS)
    if options.get("revision") == "main":
        del options["revision"]  # the default; folders have none
    dtype = _either(model_args, *DTYPE_FIELDS)
    if dtype not in (None, "auto"):
        options["dtype"] = dtype
    if options.get("load_in_4bit"):
        options |= given(model_args, FOUR_BIT_FIELDS)
    if getattr(model_args, "lora_task_type", None) == "SEQ_CLS":
        options["task"] = "sequence-classification"
    labels = getattr(model_args, "num_labels", None)
    if isinstance(labels, int) and not isinstance(labels, bool):
        options["num_labels"] = labels
    return {name: value for name, value in options.items() if value is not False}


def from_training_arguments(training_args: Any) -> dict[str, Any]:
    """The options that a trainer's arguments ask for, to load a model that is ready for that trainer.

        loaded = loadkit.load("owner/model", "qlora", **from_training_arguments(training_args))

    They are training, gradient checkpointing and its settings, the optimizer (for the estimate of memory),
    what is said of template, tokens, labels and the checkpoint's own code, and `model_init_kwargs`, which the
    trainers ignore where they are given a model. Further fields that bear on the model are named in
    `trainer_fields`, where they differ from their defaults, so that `plan.requested` says who carries them
    out.

    Parameters:
        training_args: `transformers.TrainingArguments` or one of TRL's configs.
    """
    options: dict[str, Any] = {"training": True, **_of_trainer(training_args)}
    optim = getattr(training_args, "optim", None)
    if optim is not None:
        options["optim"] = getattr(optim, "value", optim)
    options["gradient_checkpointing"] = _checkpoints_activations(training_args)
    kwargs = _either(training_args, *CHECKPOINTING["gradient_checkpointing_kwargs"])
    if kwargs and options["gradient_checkpointing"]:
        options["gradient_checkpointing_kwargs"] = dict(kwargs)
    if left := _left_to_the_trainer(training_args):
        options[TRAINER_FIELDS] = left
    wants_cpu = getattr(training_args, "use_cpu", False) or getattr(training_args, "no_cuda", False)
    if wants_cpu and read_machine().accelerators:
        options.setdefault("device_map", "cpu")
    return options


def recipe_of(model_args: Any, training_args: Any = None) -> Recipe:
    """Both argument objects as a recipe: what they say is a preference, which may fall back in plain sight.

    As in the originals, the trainer prepares the model, and gradient checkpointing turns the cache off.
    """
    options = from_model_config(model_args)
    if training_args is not None:
        options |= {**_of_reward(training_args), **_of_trainer(training_args)}
        options["use_cache"] = not _checkpoints_activations(training_args)
    return Recipe(
        path=type(model_args).__name__, dialect="trl", source=_model_id(model_args), options=options
    )


def _of_trainer(training_args: Any) -> dict[str, Any]:
    """What a trainer's config says of model and tokenizer; False, TRL's default for code, says nothing."""
    found = given(training_args, TRAINING_FIELDS)
    found |= _of_init(getattr(training_args, "model_init_kwargs", None))
    return {name: value for name, value in found.items() if value is not False}


def _of_init(given: Any) -> dict[str, Any]:
    """What `model_init_kwargs` asks for, which a trainer hands to `from_pretrained` itself."""
    given = json.loads(given) if isinstance(given, str) else given
    found: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    for name, value in (given or {}).items():
        if (
            value is None
            or (name in DTYPE_FIELDS and value == "auto")
            or (name, value) == ("revision", "main")
        ):
            continue
        if name in DTYPE_FIELDS:
            found["dtype"] = value
        elif name in INIT_FIELDS:
            found[name] = value
        else:
            rest[name] = value
    return {**found, "model_kwargs": rest} if rest else found


def _left_to_the_trainer(training_args: Any) -> list[str]:
    """The fields that the trainer carries out itself, and that aren't at their defaults."""
    fields = dataclasses.fields(training_args) if dataclasses.is_dataclass(training_args) else ()
    defaults = {
        field.name: field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        for field in fields
    }
    found = ["RewardConfig"] if _rewards(training_args) else []
    for name in LEFT_TO_THE_TRAINER:
        value = getattr(training_args, name, None)
        if value is None or value is False or value == [] or value == {} or value == defaults.get(name):
            continue
        if name == "packing" and str(getattr(training_args, "packing_strategy", "")) == "wrapped":
            continue  # texts are cut and joined on purpose
        found.append(name)
    return found


def _of_reward(training_args: Any) -> dict[str, Any]:
    """What TRL's reward script loads: a classifier with one label."""
    return {"task": "sequence-classification", "num_labels": 1} if _rewards(training_args) else {}


def _rewards(training_args: Any) -> bool:
    return any(kind.__name__ == "RewardConfig" for kind in type(training_args).__mro__)


def _checkpoints_activations(training_args: Any) -> bool:
    """Whether gradient checkpointing is on, which transformers 5.23 calls activation checkpointing."""
    return bool(_either(training_args, *CHECKPOINTING["gradient_checkpointing"]))


def _model_id(model_args: Any) -> str:
    found = getattr(model_args, "model_name_or_path", None)
    if not found:
        raise LoadkitError(
            f"{type(model_args).__name__} names no model: model_name_or_path is {found!r}; give a folder or a Hub id"
        )
    return str(found)


def _either(arguments: Any, *names: str) -> Any:
    return next((value for name in names if (value := getattr(arguments, name, None)) is not None), None)


def given(arguments: Any, fields: Mapping[str, str]) -> dict[str, Any]:
    """Option to value of the fields that are there and set; the first of two for one option counts."""
    found: dict[str, Any] = {}
    for field, option in fields.items():
        value = getattr(arguments, field, None)
        if value is not None:
            found.setdefault(option, value)
    return found
