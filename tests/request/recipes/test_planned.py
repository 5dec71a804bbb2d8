"""Recipes through plan, load and the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from examples import A100, T4

import loadkit
from loadkit.cli import main

Written = Callable[[str], Path]

QLORA = """
model_name_or_path: BASE
torch_dtype: bfloat16
attn_implementation: flash_attention_2
load_in_4bit: true
bnb_4bit_quant_storage: bfloat16
use_peft: true
lora_r: 16
lora_alpha: 16
chat_template: "{% for m in messages %}{{ m['content'] }}{% endfor %}"
dataset_mixer: {some/dataset: 1.0}
bf16: true
gradient_checkpointing: true
learning_rate: 2.0e-04
"""


def test_a_recipe_is_planned_and_loaded(tiny: Any, written: Written) -> None:
    path = written(QLORA.replace("BASE", str(tiny("mistral"))))
    plan = loadkit.plan(recipe=path)
    assert plan.checkpoint.location == str(tiny("mistral"))
    assert plan.attn_implementation == "sdpa"  # a recipe's preference falls back in plain sight
    assert any(p.value == "flash_attention_2" for p in plan.why("attention").passed_over)
    assert "recipe 'recipe.yaml' prefers it" in plan.why("quantization").because
    assert plan.quantization is not None
    assert plan.quantization.options["bnb_4bit_quant_storage"] == "bfloat16"
    assert "learning_rate" in plan.request.trainer_keys
    text = str(plan)
    assert f"recipe{path}" in "".join(text.split())  # however it is folded
    assert "left to the trainer: bf16, chat_template, dataset_mixer" in text
    assert loadkit.Plan.from_json(plan.to_json()) == plan
    loaded = loadkit.load(recipe=path, lora_r=4)
    assert loaded.model.peft_config["default"].r == 4
    assert loaded.model.peft_config["default"].lora_alpha == 16
    assert "lora_r=4 by you, instead of 16 by recipe 'recipe.yaml'" in str(loaded.plan)


def test_you_beat_the_recipe_and_the_recipe_beats_the_profile(tiny: Any, written: Written) -> None:
    path = written("use_peft: true\nlora_r: 32\n")
    plan = loadkit.plan(tiny("mistral"), "qlora", recipe=path)
    assert plan.adapter is not None
    assert plan.adapter.options["r"] == 32
    assert plan.quantization is not None  # the profile's, which the recipe leaves open
    assert "lora_r=32 by recipe 'recipe.yaml', instead of 16 by profile 'qlora'" in str(plan)
    yours = loadkit.plan(tiny("mistral"), "qlora", recipe=path, lora_r=2)
    assert yours.adapter is not None
    assert yours.adapter.options["r"] == 2


def test_a_translated_dtype_falls_back_in_plain_sight(tiny: Any, written: Written) -> None:
    path = written(
        f"base_model: {tiny('mistral')}\nadapter: qlora\nbf16: auto\nmodel_config: {{rope_theta: 500.0}}\n"
    )
    ampere, turing = loadkit.plan(recipe=path, machine=A100), loadkit.plan(recipe=path, machine=T4)
    assert ampere.dtype == "bfloat16"
    assert ampere.kwargs["rope_parameters"]["rope_theta"] == 500.0
    assert turing.dtype == "float16"
    assert "recipe 'recipe.yaml' prefers bfloat16, but Tesla T4 is sm75" in turing.why("dtype").because


@pytest.mark.parametrize(
    "text",
    [
        "base_model: {}\nadapter: lora\nlora_target_modules: [q_proj]\nlora_target_linear: true\n",
        "base_model: {}\ntokens: [<a>]\nspecial_tokens: {{pad_token: <p>, additional_special_tokens: [<b>]}}\n",
        "base_model: {}\nreward_model: true\nmodel_type: AutoModelForSequenceClassification\n",
        "model_name_or_path: {}\ndo_train: true\nfinetuning_type: full\nlora_rank: 8\ntemplate: llama3\nbf16: true\n",
        "model_name_or_path: {}\ndo_train: true\npissa_init: true\npissa_iter: 4\nfreeze_vision_tower: true\nquantization_method: hqq\n",
        "model_name_or_path: {}\nuse_peft: true\nload_in_8bit: true\nbnb_4bit_quant_type: nf4\npadding_side: left\n",
    ],
)
def test_what_is_translated_can_be_planned(tiny: Any, written: Written, text: str) -> None:
    plan = loadkit.plan(recipe=written(text.format(tiny("mistral"))))
    assert plan.preparation.training


def test_problems_of_a_recipe_come_with_the_others(tiny: Any, tmp_path: Path, written: Written) -> None:
    path = written("atn_implementation: sdpa\nload_in_4bit: true\nload_in_8bit: true\ntorch_dtype: bf17\n")
    with pytest.raises(loadkit.PlanError) as caught:
        loadkit.plan(tiny("mistral"), recipe=path, dtpe="x")
    assert {"recipe-misspelt-key", "recipe-contradiction", "unknown-dtype", "unknown-option"} <= {
        p.code for p in caught.value.problems
    }
    with pytest.raises(loadkit.PlanError, match="names no model"):
        loadkit.plan(recipe=written("dtype: auto\n"))
    with pytest.raises(loadkit.PlanError, match="neither a model nor a recipe"):
        loadkit.plan()
    with pytest.raises(loadkit.PlanError, match="can't be read"):
        loadkit.load(recipe=tmp_path / "nowhere.yaml")


def test_the_command_line_takes_a_recipe(
    tiny: Any, written: Written, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(f"model_name_or_path: {tiny('mistral')}\nuse_peft: true\n")
    main(["plan", "--recipe", str(path)], standalone_mode=False)
    assert "LORA r=16 (by-model-type); " in capsys.readouterr().out
