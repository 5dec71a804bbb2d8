"""What model_kwargs names is taken by from_pretrained or the config, or refused with the nearest names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from examples import CPU, GEMMA3, PACKAGES, checkpoint, planned, problems
from msgspec.structs import replace

import loadkit

Tiny = Callable[..., Path]
ROPE = {"rope_type": "default", "rope_theta": 1.0}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"rope_thetta": 1}, "did you mean 'rope_theta'"),
        ({"hiden_size": 64}, "did you mean 'hidden_size'"),
        ({"offload_foldr": "a"}, "did you mean 'offload_folder'"),
        ({"max_new_tokens": 3}, "model.generate(max_new_tokens=…)"),
        ({"to_dict": 1}, "no such field"),
        ({"rope_parameters": {**ROPE, "rope_thetta": 1}}, "did you mean 'rope_theta'"),
    ],
)
def test_a_key_that_nobody_takes(given: dict[str, Any], said: str) -> None:
    assert said in problems(model_kwargs=given)["unknown-model-kwarg"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"num_hidden_layers": "two"}, "a str; it takes int"),
        ({"num_hidden_layers": True}, "a bool; it takes int"),
        ({"rms_norm_eps": None}, "it takes float"),
        ({"eos_token_id": ["a"]}, "it takes int or list[int]"),
        ({"offload_buffers": "yes"}, "it takes bool"),
        ({"hidden_act": "sliu"}, "did you mean 'silu'"),
        ({"pad_token_id": 10**6}, "the vocabulary has"),
        ({"generation_config": {"max_new_tokens": 3}}, "takes an object"),
        ({"rope_parameters": {}}, "says nothing"),
        ({"rope_parameters": {"rope_theta": 1.0}}, "without a rope_type"),
        ({"rope_parameters": {"rope_type": "yran"}}, "did you mean 'yarn'"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "without factor"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": "x"}}, "a str; it takes float"),
    ],
)
def test_a_value_that_its_field_doesnt_take(given: dict[str, Any], said: str) -> None:
    assert said in problems(model_kwargs=given)["bad-model-kwarg"]


def test_a_nested_config_is_looked_into() -> None:
    facts = checkpoint(GEMMA3)
    told = problems(facts, model_kwargs={"text_config": {"rope_thetta": 1}})["unknown-model-kwarg"]
    assert "text_config.rope_thetta=1" in told
    assert "Gemma3TextConfig" in told
    told = problems(facts, model_kwargs={"vision_config": {"image_size": "large"}})["bad-model-kwarg"]
    assert "vision_config.image_size='large'" in told
    told = problems(facts, model_kwargs={"num_hidden_layers": 2})["unknown-model-kwarg"]
    assert "model_kwargs={'text_config': {'num_hidden_layers': 2}}" in told
    whole = {
        "text_config": {
            "model_type": "gemma3_text",
            "_name_or_path": "",
            "num_hidden_layers": 2,
            "sliding_window": 8,
        }
    }
    assert planned(facts, model_kwargs=whole).kwargs["text_config"] == whole["text_config"]


@pytest.mark.parametrize(
    "given",
    [
        {"attention_dropout": 0.1}, {"rope_parameters": ROPE}, {"rope_scaling": {"rope_theta": 5.0}}, {"offload_folder": "a"},
        {"experts_implementation": "eager"}, {"num_labels": 3}, {"id2label": {"0": "a"}}, {"sliding_window": None},
        {"output_attentions": True}, {"per_layer_config": {"0": {"sliding_window": 3}}}, {"code_revision": "main"},
        {"eos_token_id": [1, 2]}, {"problem_type": "regression"}, {"disable_mmap": True}, {"use_return_dict": True},
    ],
)  # fmt: skip
def test_what_a_load_takes_passes(given: dict[str, Any]) -> None:
    if "use_return_dict" in given:  # a property without a setter
        assert "unknown-model-kwarg" in problems(model_kwargs=given)
        return
    assert planned(model_kwargs=given).kwargs.items() >= given.items()


def test_an_argument_that_transformers_doesnt_look_at_is_told() -> None:
    (told,) = planned(model_kwargs={"low_cpu_mem_usage": True}).warnings
    assert (told.code, told.severity) == ("keyword-ignored", "note")


def test_a_package_that_kernels_need() -> None:
    told = problems(model_kwargs={"use_kernels": True})["no-kernels"]
    assert "pip install 'kernels" in told
    there = replace(CPU, packages={**PACKAGES, "kernels": "0.18.2"})
    assert planned(machine=there, model_kwargs={"use_kernels": True}).kwargs["use_kernels"] is True


def test_a_config_from_elsewhere_is_told_not_refused() -> None:
    facts = checkpoint(
        {
            "model_type": "wren",
            "auto_map": {"AutoConfig": "a.B", "AutoModelForCausalLM": "a.C"},
            "wing_span": 3,
        },
        tensors={},
        kind="folder",
        commit="",
    )
    (told,) = planned(facts, trust_remote_code=True, model_kwargs={"wing_spam": 4}).warnings
    assert told.code == "model-kwarg-unchecked"
    assert "did you mean 'wing_span'" in told.message
    assert not planned(facts, trust_remote_code=True, model_kwargs={"wing_span": 4}).warnings


def test_what_moved_into_rope_parameters_is_loaded_there(tiny: Tiny) -> None:
    loaded = loadkit.load(tiny("mistral"), model_kwargs={"rope_theta": 500.0})
    assert loaded.model.config.rope_parameters["rope_theta"] == 500.0
    assert loaded.plan.kwargs["rope_parameters"]["rope_type"] == "default"
    assert loaded.model.model.rotary_emb.inv_freq[1].item() == pytest.approx(500.0 ** (-2 / 16))
