"""Every field of a trainer's config that bears on the model is taken up, or told to be the trainer's."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
import trl
from examples import A100, A100_FLASH, planned, problems

import loadkit
from loadkit.compat import arguments, from_training_arguments
from loadkit.hooks.manager import default_manager
from loadkit.request.recipes.key_tables import dialects
from loadkit.request.trainer_fields import LEFT_TO_THE_TRAINER

Tiny = Callable[..., Path]
pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing.*is deprecated:FutureWarning")

CONFIGS = [
    transformers.TrainingArguments, transformers.Seq2SeqTrainingArguments, trl.SFTConfig, trl.DPOConfig, trl.RewardConfig, trl.GRPOConfig,
    trl.KTOConfig,
]  # fmt: skip

BEARING = re.compile(
    "model|dtype|bf16|fp16|tf32|token(?!s_seen)|template|quant|attn|checkpointing|compile|kernel|deepspeed|fsdp|parallel|cpu|offload|cache"
    "|optim|neftune|padding|packing|length|dropout|head|adapter|label|embedding|determinism|resume"
)
"""Words of fields that may bear on the model: each such field is classified, or named below with a reason."""

OTHERS = {
    "accelerator_config": "batches", "eval_packing": "as packing", "packing_strategy": "how packing goes", "top_entropy_quantile": "loss",
    "average_tokens_across_devices": "loss", "cache_implementation": "generation", "chat_template_kwargs": "data",
    "generation_max_length": "generation", "hub_model_id": "where it is saved", "hub_token": "where it is saved", "label_names": "columns of the data",
    "label_smoothing": "loss", "label_smoothing_factor": "loss", "length_column_name": "columns of the data", "load_best_model_at_end": "saving",
    "metric_for_best_model": "saving", "mask_truncated_completions": "loss", "enable_jit_checkpoint": "saving", "save_only_model": "saving",
    "ref_model_mixup_alpha": "how sync_ref_model goes", "ref_model_sync_steps": "how sync_ref_model goes", "torch_empty_cache_steps": "the loop",
    "vllm_max_model_length": "another process's model", "vllm_model_impl": "another process's model",
    "vllm_tensor_parallel_size": "another process's model", "vllm_enable_sleep_mode": "another process's model",
}  # fmt: skip


def settings(config: Any, folder: Path, **fields: Any) -> Any:
    return config(output_dir=str(folder), **{"use_cpu": True, "bf16": False, "report_to": "none", **fields})


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.__name__)
def test_every_field_has_a_disposition(config: Any) -> None:
    fields = {field.name for field in dataclasses.fields(config)}
    ours = {*arguments.TAKEN, *LEFT_TO_THE_TRAINER}
    assert fields <= ours | set(dialects()[0].trainer)
    options = {name for name, (_, option) in default_manager().options.found.items()}
    bearing = {name for name in fields if BEARING.search(name) or name in options}
    assert bearing <= ours | OTHERS.keys(), (
        "classify it: TRAINING_FIELDS, LEFT_TO_THE_TRAINER, or OTHERS here"
    )


def test_every_field_of_trls_model_config_is_read() -> None:
    fields = {field.name for field in dataclasses.fields(trl.ModelConfig)}
    read = {
        *arguments.MODEL_FIELDS, *arguments.FOUR_BIT_FIELDS, *arguments.LORA_FIELDS, *arguments.DTYPE_FIELDS, "model_name_or_path", "use_peft",
        "lora_task_type",
    }  # fmt: skip
    assert fields <= read


def test_a_field_is_in_one_place() -> None:
    assert not set(arguments.TAKEN) & LEFT_TO_THE_TRAINER.keys()
    fields = {field.name for config in CONFIGS for field in dataclasses.fields(config)}
    assert OTHERS.keys() <= fields


SAMPLES: dict[str, Any] = {
    "bf16_full_eval": True, "torch_compile": True, "use_liger_kernel": True, "neftune_noise_alpha": 5.0, "activation_offloading": True,
    "max_length": 77, "optim_args": "a=1", "auto_find_batch_size": True, "pad_to_multiple_of": 8, "use_cpu": True, "fsdp_config": {"min_num_params": 3},
}  # fmt: skip


@pytest.mark.parametrize("field", [f for f in SAMPLES if f not in ("use_liger_kernel", "fsdp_config")])
def test_what_is_left_to_the_trainer_is_in_the_ledger(tiny: Tiny, tmp_path: Path, field: str) -> None:
    options = from_training_arguments(settings(trl.SFTConfig, tmp_path, **{field: SAMPLES[field]}))
    plan = loadkit.plan(tiny("mistral"), "lora", **options)
    told = {each.name: each for each in plan.requested}
    assert told[field].disposition == "left to the trainer"
    assert told[field].because == LEFT_TO_THE_TRAINER[field]
    assert "trainer_fields" not in told
    unset = from_training_arguments(settings(trl.SFTConfig, tmp_path, use_cpu=False, bf16=False))
    assert field not in unset.get("trainer_fields", ())


def test_model_init_kwargs_are_options(tiny: Tiny, tmp_path: Path) -> None:
    """TRL's trainers ignore them where they are given a model, with a warning at most."""
    given = {
        "dtype": "float32", "attn_implementation": "eager", "revision": "main", "device_map": None, "attention_dropout": 0.5,
        "quantization_config": transformers.BitsAndBytesConfig(load_in_4bit=True),
    }  # fmt: skip
    options = from_training_arguments(settings(trl.SFTConfig, tmp_path, model_init_kwargs=given))
    assert "revision" not in options
    plan = loadkit.plan(tiny("mistral"), "lora", **options)
    assert (plan.dtype, plan.attn_implementation, plan.quantization.bits) == ("float32", "eager", 4)
    asked = {each.name: each.disposition for each in plan.requested if each.by == "you"}
    assert asked["model_kwargs.attention_dropout"] == "passed on"
    from_text = from_training_arguments(
        settings(trl.DPOConfig, tmp_path, model_init_kwargs='{"dtype": "auto", "use_cache": false}')
    )
    assert "dtype" not in from_text
    assert from_text["model_kwargs"] == {"use_cache": False}


def test_the_optimizer_is_in_the_estimate(tiny: Tiny, tmp_path: Path) -> None:
    def states(optim: str) -> int:
        options = from_training_arguments(settings(trl.SFTConfig, tmp_path, optim=optim))
        return loadkit.plan(tiny("mistral"), "full", **options).memory.optimizer

    assert states("sgd") < states("adamw_8bit") < states("adamw_torch")


def test_the_trainers_cpu_is_the_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arguments, "read_machine", lambda: A100)
    assert from_training_arguments(settings(trl.SFTConfig, tmp_path))["device_map"] == "cpu"
    assert "device_map" not in from_training_arguments(settings(trl.SFTConfig, tmp_path, use_cpu=False))


def test_texts_that_are_joined_want_flash_attention(tmp_path: Path) -> None:
    def told(machine: loadkit.Machine, **fields: Any) -> set[str]:
        options = from_training_arguments(settings(trl.SFTConfig, tmp_path, **fields))
        return {w.code for w in planned(profile="lora", machine=machine, **options).warnings}

    for fields in ({"padding_free": True}, {"packing": True}):
        assert "joined-without-flash" in told(A100, **fields)
        assert "joined-without-flash" not in told(A100_FLASH, **fields)
    assert "joined-without-flash" not in told(A100, packing=True, packing_strategy="wrapped")


def test_a_reward_config_wants_a_head(tiny: Tiny, tmp_path: Path) -> None:
    options = from_training_arguments(settings(trl.RewardConfig, tmp_path))
    assert "task='sequence-classification'" in problems(profile="lora", **options)["reward-without-head"]
    plan = loadkit.plan(tiny("mistral"), "lora", task="sequence-classification", num_labels=1, **options)
    assert {r.name: r.disposition for r in plan.requested}["RewardConfig"] == "left to the trainer"


def test_a_name_that_is_no_trainers_field_is_refused() -> None:
    assert "did you mean 'padding_free'" in problems(trainer_fields=["padding_fre"])["unknown-trainer-field"]
