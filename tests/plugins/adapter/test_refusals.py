"""What PEFT's configs and layers refuse is read off their source, and refused before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from examples import planned, problems

import loadkit

Tiny = Callable[..., Path]
Q = ["q_proj", "v_proj"]


@pytest.mark.parametrize(
    ("given", "code", "said"),
    [
        ({"peft_type": "ADALORA"}, "peft-refuses", "supply a value > 0"),
        ({"peft_type": "ADALORA", "total_step": 10, "tinit": 20}, "peft-refuses", "budgeting phase"),
        ({"peft_type": "ADALORA", "total_step": 900, "beta1": 1.5}, "bad-field", "an average"),
        ({"peft_type": "ADALORA", "total_step": 900, "use_dora": True}, "peft-refuses", "does not support DoRA"),
        ({"peft_type": "OFT", "r": 4, "oft_block_size": 4}, "peft-refuses", "either r (4) or oft_block_size (4)"),
        ({"peft_type": "BOFT", "boft_block_size": 4, "boft_block_num": 2}, "peft-refuses", "not both"),
        ({"peft_type": "BOFT", "boft_block_size": 3}, "peft-refuses", "must be divisible by boft_block_size (3)"),
        ({"peft_type": "BOFT", "bias": "lora_only"}, "bad-field", "boft_only"),
        ({"peft_type": "C3A", "block_size": 48}, "peft-refuses", "self_attn.q_proj (64 × 64)"),
        ({"peft_type": "FOURIERFT", "n_frequency": 0}, "peft-refuses", "positive integer"),
        ({"peft_type": "MISS", "r": 10**6}, "peft-refuses", "in_features (64)"),
        ({"peft_type": "IA3", "feedforward_modules": ["up_proj"]}, "peft-refuses", "subset"),
        ({"peft_type": "ROAD", "variant": "road_3"}, "peft-refuses", "road_1, road_2 or road_4"),
        ({"peft_type": "CPT", "target_modules": None, "cpt_token_ids": [1, 2], "cpt_mask": [1]}, "peft-refuses", "same length"),
        ({"peft_type": "PROMPT_TUNING", "target_modules": None}, "bad-field", "number of virtual tokens"),
        ({"peft_type": "PROMPT_TUNING", "target_modules": None, "num_virtual_tokens": 0}, "bad-field", "num_virtual_tokens=0"),
        ({"peft_type": "PREFIX_TUNING", "target_modules": None, "num_virtual_tokens": 3}, "adapter-with-checkpointing", "KV cache"),
        ({"lora_bias": True, "use_dora": True}, "peft-refuses", "not supported for DoRA"),
        ({"eva_config": {"rhoo": 2}}, "unknown-field", "did you mean 'rho'"),
        ({"eva_config": {"rho": 0.5}, "init_lora_weights": True}, "peft-refuses", "must be >= 1.0"),
        ({"loftq_config": {"loftq_bits": "four"}, "init_lora_weights": "loftq"}, "bad-field", "loftq_bits='four'"),
        ({"layer_replication": ["a"]}, "bad-field", "layer_replication=['a']"),
        ({"target_modules": [7]}, "bad-field", "list[str]"),
        ({"target_modules": []}, "target-matches-nothing", "names no module"),
        ({"exclude_modules": Q}, "target-matches-nothing", "leaves out every one"),
        ({"target_parameters": ["q_proj"]}, "target-matches-nothing", "q_proj.weight"),
        ({"trainable_token_indices": []}, "bad-field", "names no token"),
        ({"trainable_token_indices": [3, -1]}, "bad-field", "-1 is no token"),
        ({"megatron_config": {"a": 1}}, "no-megatron", "megatron-core"),
        ({"peft_type": "HIRA", "hira_dropout": 1.5}, "bad-field", "a dropout"),
    ],
)  # fmt: skip
def test_what_peft_refuses(given: dict[str, Any], code: str, said: str) -> None:
    assert said in problems(profile="lora", peft_config={"target_modules": Q, **given})[code]


def test_embeddings_of_a_type_without_a_layer_for_them() -> None:
    given = {"target_modules": ["embed_tokens"]}
    told = problems(profile="lora", peft_config={"peft_type": "ADALORA", "total_step": 900, **given})
    assert "model.embed_tokens is an embedding" in told["target-cant-be-adapted"]
    assert planned(profile="lora", peft_config=given).adapter is not None


@pytest.mark.parametrize(
    "given",
    [
        {"peft_type": "C3A", "block_size": 16}, {"peft_type": "FOURIERFT", "n_frequency": 10}, {"peft_type": "LOHA"},
        {"peft_type": "BOFT", "boft_block_size": 4}, {"peft_type": "OFT", "oft_block_size": 4, "r": 0}, {"peft_type": "VERA"},
        {"peft_type": "IA3", "feedforward_modules": ["v_proj"]}, {"peft_type": "ADALORA", "total_step": 900},
        {"runtime_config": {"ephemeral_gpu_offload": False}}, {"trainable_token_indices": [3]}, {"bias": "lora_only"},
        {"layer_replication": [[0, 2]]}, {"init_lora_weights": "pissa_niter_4"},
    ],
)  # fmt: skip
def test_what_peft_takes_passes(given: dict[str, Any]) -> None:
    assert planned(profile="lora", peft_config={"target_modules": Q, **given}).adapter is not None


def test_a_config_within_the_config_is_loaded(tiny: Tiny) -> None:
    given = {"target_modules": Q, "runtime_config": {"ephemeral_gpu_offload": False}}
    loaded = loadkit.load(tiny("mistral"), "lora", peft_config=given)
    assert loaded.model.peft_config["default"].runtime_config.ephemeral_gpu_offload is False
