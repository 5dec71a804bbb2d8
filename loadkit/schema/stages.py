"""The stages in their fixed order, and what each contributes to `from_pretrained`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from loadkit.schema.adapters import Adapters
from loadkit.schema.processing import Processing, Tokens
from loadkit.schema.values import ModelClass, Placement, Preparation, Quantization

__all__ = ["OWNED_KWARGS", "STAGES", "Stage", "stage_named"]


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """One stage of the pipeline; its hook is `loadkit_choose_NAME`.

    Parameters:
        option: the option by which a user settles it.
        required: whether some plugin must claim.
        kwargs: its value to the keyword arguments of `from_pretrained` that it owns.
        owns: the names of those, and of the older spellings nobody else may pass.
    """

    name: str
    type: Any
    option: str
    required: bool = True
    kwargs: Callable[[Any], dict[str, Any]] = lambda value: {}
    owns: tuple[str, ...] = ()


def _architecture_kwargs(value: ModelClass) -> dict[str, Any]:
    consent = {"trust_remote_code": value.implementation == "remote code"}
    return {**consent, "key_mapping": value.key_mapping} if value.key_mapping else consent


def _quantization_kwargs(value: Quantization | None) -> dict[str, Any]:
    if value is None or not value.handed_on:
        return {}
    if value.prequantized:
        return {"quantization_config": {"method": value.method, "dequantize": True}}
    skip = {"skip_modules": list(value.skip_modules)} if value.skip_modules else {}
    return {"quantization_config": {"method": value.method, **value.options, **skip}}


def _placement_kwargs(value: Placement) -> dict[str, Any]:
    given = {"device_map": value.device_map, "max_memory": value.max_memory}
    return {key: item for key, item in given.items() if item is not None}


STAGES: tuple[Stage, ...] = (
    Stage(
        name="architecture",
        type=ModelClass,
        option="task",
        owns=("key_mapping", "trust_remote_code"),
        kwargs=_architecture_kwargs,
    ),
    Stage(
        name="dtype",
        type=str,
        option="dtype",
        owns=("dtype", "torch_dtype"),
        kwargs=lambda value: {"dtype": value},
    ),
    Stage(
        name="attention",
        type=str | dict[str, str],
        option="attn_implementation",
        owns=("attn_implementation", "_attn_implementation", "_attn_implementation_internal"),
        kwargs=lambda value: {"attn_implementation": value},
    ),
    Stage(
        name="quantization",
        type=Quantization | None,
        option="quantization_config",
        required=False,
        owns=("quantization_config", "load_in_4bit", "load_in_8bit"),
        kwargs=_quantization_kwargs,
    ),
    Stage(
        name="device_map",
        type=Placement,
        option="device_map",
        owns=("device_map", "max_memory"),
        kwargs=_placement_kwargs,
    ),
    Stage(name="preparation", type=Preparation, option="gradient_checkpointing"),
    Stage(name="use_cache", type=bool | None, option="use_cache", required=False, owns=("use_cache",)),
    Stage(name="processing", type=Processing, option="processing_class"),
    Stage(name="tokens", type=Tokens | None, option="pad_token", required=False),
    Stage(name="adapter", type=Adapters | None, option="adapter", required=False, owns=("adapter_kwargs",)),
)
"""All stages that decide one value each; then come the further kwargs, one by one, as "kwargs.NAME"."""

OWNED_KWARGS: Mapping[str, str] = {
    **{key: stage.name for stage in STAGES for key in stage.owns},
    **dict.fromkeys(("config", "state_dict", "gguf_file", "subfolder", "variant"), "checkpoint"),
    **dict.fromkeys(("revision", "use_safetensors", "weights_only"), "checkpoint"),
    **dict.fromkeys(("architectures", "auto_map", "model_type", "tie_word_embeddings"), "checkpoint"),
    **dict.fromkeys(("_name_or_path", "transformers_weights"), "checkpoint"),
    **dict.fromkeys(("device_mesh", "tp_plan", "tp_size"), "engine"),
    **dict.fromkeys(("output_loading_info", "ignore_mismatched_sizes", "token"), "load"),
}
"""Keyword arguments of `from_pretrained` that belong to a stage or to the core, to their owner."""


def stage_named(name: str) -> Stage | None:
    """The stage of that name; None for a further kwarg ("kwargs.NAME")."""
    return next((stage for stage in STAGES if stage.name == name), None)
