"""The stages: what each hands to `from_pretrained`, and who else may not."""

from __future__ import annotations

from typing import Any

import pytest

from loadkit.schema.stages import OWNED_KWARGS, STAGES, stage_named
from loadkit.schema.values import ModelClass, Placement, Preparation, Quantization

TRANSFORMERS = ModelClass(task="causal-lm", auto_class="AutoModelForCausalLM", model_class="M")
REMOTE = ModelClass(task="causal-lm", auto_class="A", model_class="M", implementation="remote code")
MAPPED = ModelClass(task="causal-lm", auto_class="A", model_class="M", key_mapping={"^a": "b"})
FOUR_BIT = Quantization(method="m", bits=4, options={"kind": "nf4"}, skip_modules=("q", "v"))


@pytest.mark.parametrize(
    ("stage", "value", "expected"),
    [
        ("architecture", TRANSFORMERS, {"trust_remote_code": False}),
        ("architecture", REMOTE, {"trust_remote_code": True}),
        ("architecture", MAPPED, {"trust_remote_code": False, "key_mapping": {"^a": "b"}}),
        ("dtype", "float16", {"dtype": "float16"}),
        ("attention", "sdpa", {"attn_implementation": "sdpa"}),
        (
            "attention",
            {"": "sdpa", "vision": "eager"},
            {"attn_implementation": {"": "sdpa", "vision": "eager"}},
        ),
        ("quantization", None, {}),
        (
            "quantization",
            FOUR_BIT,
            {"quantization_config": {"method": "m", "kind": "nf4", "skip_modules": ["q", "v"]}},
        ),
        ("quantization", Quantization(method="m", bits=8), {"quantization_config": {"method": "m"}}),
        ("quantization", Quantization(method="m", bits=8, prequantized=True), {}),
        ("device_map", Placement(device_map=None), {}),
        ("device_map", Placement(device_map={"": 0}), {"device_map": {"": 0}}),
        (
            "device_map",
            Placement(device_map="auto", max_memory={"0": 1}),
            {"device_map": "auto", "max_memory": {"0": 1}},
        ),
        ("preparation", Preparation(training=True), {}),
        ("use_cache", False, {}),
    ],
)
def test_what_a_stage_hands_on(stage: str, value: Any, expected: dict[str, Any]) -> None:
    found = stage_named(stage)
    assert found is not None
    assert found.kwargs(value) == expected


def test_the_option_that_settles_each_and_whether_it_must_be_settled() -> None:
    assert {stage.name: (stage.option, stage.required) for stage in STAGES} == {
        "architecture": ("task", True),
        "dtype": ("dtype", True),
        "attention": ("attn_implementation", True),
        "quantization": ("quantization_config", False),
        "device_map": ("device_map", True),
        "preparation": ("gradient_checkpointing", True),
        "use_cache": ("use_cache", False),
        "processing": ("processing_class", True),
        "tokens": ("pad_token", False),
        "adapter": ("adapter", False),
    }


def test_who_owns_each_keyword_argument() -> None:
    """One that is missing here could be given in model_kwargs, past the stage that decides it."""
    assert OWNED_KWARGS == {
        "key_mapping": "architecture",
        "trust_remote_code": "architecture",
        "dtype": "dtype",
        "torch_dtype": "dtype",
        "attn_implementation": "attention",
        "quantization_config": "quantization",
        "load_in_4bit": "quantization",
        "load_in_8bit": "quantization",
        "device_map": "device_map",
        "max_memory": "device_map",
        "use_cache": "use_cache",
        "adapter_kwargs": "adapter",
        "config": "checkpoint",
        "state_dict": "checkpoint",
        "gguf_file": "checkpoint",
        "subfolder": "checkpoint",
        "variant": "checkpoint",
        "revision": "checkpoint",
        "use_safetensors": "checkpoint",
        "weights_only": "checkpoint",
        "device_mesh": "engine",
        "tp_plan": "engine",
        "tp_size": "engine",
        "output_loading_info": "load",
        "ignore_mismatched_sizes": "load",
        "token": "load",
        "_attn_implementation": "attention",
        "_attn_implementation_internal": "attention",
        "architectures": "checkpoint",
        "auto_map": "checkpoint",
        "model_type": "checkpoint",
        "tie_word_embeddings": "checkpoint",
        "_name_or_path": "checkpoint",
        "transformers_weights": "checkpoint",
    }


def test_a_further_keyword_is_no_stage() -> None:
    assert [stage_named(stage.name) for stage in STAGES] == list(STAGES)
    assert stage_named("kwargs.dtype") is None
