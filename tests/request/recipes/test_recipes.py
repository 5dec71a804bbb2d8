"""Training recipes as people keep them: their loading keys become options, the trainer's stay untouched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from loadkit.request.recipes import Recipe

Read = Callable[[str], Recipe]
Reported = Callable[[str], dict[str, str]]

HANDBOOK_QLORA = """
# supervised fine-tuning in the alignment-handbook's manner
model_name_or_path: mistralai/Mistral-7B-v0.1
model_revision: main
torch_dtype: bfloat16
attn_implementation: flash_attention_2
load_in_4bit: true
bnb_4bit_quant_storage: bfloat16
use_peft: true
lora_r: 16
lora_alpha: 16
lora_dropout: 5e-2
lora_target_modules: [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj]
chat_template: "{% for m in messages %}{{ m['content'] }}{% endfor %}"
dataset_mixer:
  some/dataset: 1.0
dataset_splits: [train_sft, test_sft]
preprocessing_num_workers: 12
bf16: true
gradient_checkpointing: true
gradient_checkpointing_kwargs:
  use_reentrant: false
learning_rate: 2.0e-04
max_seq_length: 2048
"""

HANDBOOK_DPO = """
model_name_or_path: owner/sft-model
torch_dtype: null
bf16: true
beta: 0.01
gradient_checkpointing: true
learning_rate: 5.0e-7
loss_type: sigmoid
optim: adamw_torch
"""

OPEN_R1_GRPO = """
model_name_or_path: Qwen/Qwen2.5-1.5B-Instruct
model_revision: main
torch_dtype: bfloat16
attn_implementation: flash_attention_2
dataset_name: owner/maths
reward_funcs: [accuracy, format]
reward_weights: [1.0, 1.0]
system_prompt: Think first, then answer.
use_vllm: true
num_generations: 16
eos_token: <|im_end|>
gradient_checkpointing: true
gradient_checkpointing_kwargs: {use_reentrant: false}
"""

AXOLOTL = """
base_model: NousResearch/Llama-3.2-1B
load_in_8bit: false
load_in_4bit: true
adapter: qlora
lora_model_dir:
lora_r: 32
lora_alpha: 16
lora_dropout: 0.05
lora_target_linear: true
sequence_len: 2048
sample_packing: true
datasets:
  - path: owner/data
    type: alpaca
bf16: auto
tf32: false
gradient_checkpointing: true
flash_attention: true
special_tokens:
  pad_token: "<|end_of_text|>"
  bos_token: "<s>"
chat_template: chatml
micro_batch_size: 2
"""

LLAMA_FACTORY = """
model_name_or_path: meta-llama/Meta-Llama-3-8B-Instruct
quantization_bit: 4
quantization_method: bnb
trust_remote_code: true
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all
flash_attn: fa2
template: llama3
cutoff_len: 2048
bf16: true
"""


def test_a_handbook_recipe(recipe: Read) -> None:
    found = recipe(HANDBOOK_QLORA)
    assert (found.dialect, found.source) == ("trl", "mistralai/Mistral-7B-v0.1")
    assert found.options == {
        "training": True,
        "dtype": "bfloat16",
        "attn_implementation": "flash_attention_2",
        "load_in_4bit": True,
        "bnb_4bit_quant_storage": "bfloat16",
        "adapter": True,
        "lora_r": 16,
        "lora_alpha": 16,
        "lora_dropout": 0.05,
        "lora_target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        "chat_template": "{% for m in messages %}{{ m['content'] }}{% endfor %}",
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "lora_vision": True,
        "new_adapter": True,
    }
    assert found.trainer["learning_rate"] == 2e-4
    assert found.trainer["dataset_mixer"] == {"some/dataset": 1.0}
    assert found.shared == ("chat_template", "gradient_checkpointing", "gradient_checkpointing_kwargs")
    assert set(found.shared) < set(found.trainer)
    assert "torch_dtype" not in found.trainer


def test_full_training_leaves_the_dtype_to_the_checkpoint(recipe: Read, reported: Reported) -> None:
    """TRAPS 23: None means "auto" now. Mixed precision keeps weights in the dtype that they were loaded
    in."""
    assert recipe(HANDBOOK_DPO).options == {"training": True, "gradient_checkpointing": True}
    frozen = recipe(HANDBOOK_DPO + "use_peft: true\n")
    assert frozen.options["dtype"] == "bfloat16"
    assert any("no dtype is named" in note for note in frozen.notes)
    for name in ("dtype", "torch_dtype"):
        assert recipe(f"{name}: float16\n").options["dtype"] == "float16"
        assert "dtype" not in recipe(f"{name}: auto\n").options
    both = reported("dtype: float16\ntorch_dtype: bfloat16\n")
    assert "keep dtype or torch_dtype" in both["recipe-key-twice"]
    assert recipe("dtype: float16\ntorch_dtype: float16\n").options["dtype"] == "float16"


def test_an_open_r1_recipe(recipe: Read) -> None:
    found = recipe(OPEN_R1_GRPO)
    assert found.options == {
        "training": True,
        "dtype": "bfloat16",
        "attn_implementation": "flash_attention_2",
        "eos_token": "<|im_end|>",
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
    }
    assert {"reward_funcs", "system_prompt", "use_vllm", "eos_token"} <= set(found.trainer)


def test_trls_defaults_of_an_adapter(recipe: Read) -> None:
    found = recipe("use_peft: true\nlora_task_type: SEQ_CLS\n")
    assert found.options == {
        "training": True,
        "adapter": True,
        "task": "sequence-classification",
        "lora_r": 16,
        "lora_alpha": 32,
        "lora_dropout": 0.05,
        "lora_vision": True,
        "lora_target_modules": "by-model-type",
        "adapter_dtype": "float32",
        "new_adapter": True,
    }
    assert "PEFT's own" in found.notes[0]
    assert (
        "adapter_dtype" not in recipe("use_peft: true\nload_in_4bit: true\n").options
    )  # TRL casts those back


def test_trl_without_a_dtype_loads_in_float32(recipe: Read) -> None:
    """ModelConfig's own default; a recipe that names no model is a part of one, and null asks for nothing."""
    named = recipe("model_name_or_path: a/b\nlearning_rate: 1.0e-4\n")
    assert named.options == {"training": True, "dtype": "float32"}
    assert "TRL loads in float32" in named.notes[0]
    for part in ("learning_rate: 1.0e-4\n", "model_name_or_path: a/b\ntorch_dtype: null\n"):
        assert recipe(part).options == {"training": True}


TURNED_BACK = {"dequantize_stored": ["mxfp4", "fp8"]}
"""What LLaMA-Factory does with checkpoints that are stored so, whatever a recipe says."""

REENTRANT = {"gradient_checkpointing_kwargs": {"use_reentrant": True}}
"""The default of axolotl and LLaMA-Factory."""

TRAINS = {**TURNED_BACK, "padding_side": "right"}
RUNS = {**TURNED_BACK, "padding_side": "left"}
"""What LLaMA-Factory has for its tokenizer, too."""


def test_settings_of_what_is_off_are_left_out_in_plain_sight(recipe: Read) -> None:
    found = recipe("use_peft: false\nlora_r: 8\nbnb_4bit_quant_type: nf4\nload_in_4bit: false\n")
    assert found.options == {"training": True, "adapter": False}
    assert found.notes == (
        "lora_r has no effect without a new adapter, and is left out",
        "bnb_4bit_quant_type has no effect without 4-bit quantization, and is left out",
    )
    resumed = recipe(
        "adapter_name_or_path: ./mine\nlora_rank: 4\nquantization_bit: 8\nquantization_type: nf4\ndo_train: true\n"
    )
    assert resumed.options == {
        "training": True,
        "adapter": "./mine",
        "load_in_8bit": True,
        "float32_norms": False,
        "gradient_checkpointing": True,
        "adapter_dtype": "float32",
        "frozen_parts": ["towers", "projector"],
        **TRAINS,
        **REENTRANT,
    }
    assert [note.split()[0] for note in resumed.notes] == ["training", "lora_rank", "quantization_type"]
    full = recipe(
        "finetuning_type: full\nlora_rank: 8\nlora_target: all\nfreeze_vision_tower: true\ndo_train: true\n"
    )
    assert full.options == {
        "training": True,
        "adapter": False,
        "gradient_checkpointing": True,
        "trainable_dtype": "float32",
        "frozen_parts": ["towers", "projector"],
        **TRAINS,
        **REENTRANT,
    }
    assert full.trainer == {"freeze_vision_tower": True, "do_train": True}
    assert full.shared == ()


def test_what_the_trainer_reads_too_stays_with_it(recipe: Read) -> None:
    found = recipe(
        "trust_remote_code: true\npad_token: <pad>\nattn_implementation: sdpa\nuse_peft: true\nbf16: true\n"
    )
    assert found.trainer == {"trust_remote_code": True, "pad_token": "<pad>", "bf16": True}
    assert found.shared == ("bf16", "pad_token", "trust_remote_code")


def test_numbers_that_yaml_reads_as_text(recipe: Read) -> None:
    found = recipe("use_peft: yes\nlora_r: '32'\nlora_alpha: 6.4e1\nlora_dropout: 5e-2\n")
    assert (found.options["lora_r"], found.options["lora_alpha"], found.options["lora_dropout"]) == (
        32,
        64.0,
        0.05,
    )
    assert type(found.options["lora_r"]) is int


@pytest.mark.parametrize("nothing", ["", "null", "'null'", "None", "~", "''"])
def test_nothing_is_asked_for_in_many_ways(recipe: Read, nothing: str) -> None:
    found = recipe(
        f"model_name_or_path: {nothing}\ndtype: {nothing}\nlora_r: {nothing}\nattn_implementation: {nothing}\n"
    )
    assert (found.source, found.options, found.notes) == ("", {"training": True}, ())


def test_one_target_in_a_list(recipe: Read) -> None:
    """As TRL does with lists of one; a pattern or a name stays what it is."""
    for text, targets in [
        ("[all-linear]", "all-linear"),
        ("[q_proj]", ["q_proj"]),
        ("'.*q_proj'", ".*q_proj"),
    ]:
        assert (
            recipe(f"use_peft: true\nlora_target_modules: {text}\n").options["lora_target_modules"] == targets
        )
    llama_factory = recipe("do_train: true\nlora_target: [all]\n")
    assert llama_factory.options["lora_target_modules"] == "every-linear"


def test_the_models_own_arguments_count_over_the_rest(recipe: Read) -> None:
    """TRL's scripts lay model_init_kwargs over what ModelConfig says."""
    for order in (1, -1):
        lines = ["torch_dtype: float32", "model_init_kwargs: {dtype: bfloat16, rope_theta: 5.0}"][::order]
        found = recipe("\n".join(lines))
        assert found.options == {"training": True, "dtype": "bfloat16", "model_kwargs": {"rope_theta": 5.0}}
        assert found.trainer == {}
        assert found.notes == (
            "model_init_kwargs.dtype counts, not torch_dtype: dtype is 'bfloat16', not 'float32'",
        )


def test_an_axolotl_recipe(recipe: Read) -> None:
    found = recipe(AXOLOTL)
    assert (found.dialect, found.source) == ("axolotl", "NousResearch/Llama-3.2-1B")
    assert found.options == {
        "training": True,
        "adapter": True,
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_quant_storage": "bfloat16",
        "lora_r": 32,
        "lora_alpha": 16,
        "lora_dropout": 0.05,
        "lora_target_modules": ["every-linear"],
        "lora_vision": True,
        "adapter_dtype": "float32",
        "gradient_checkpointing": True,
        **REENTRANT,
        "attn_implementation": "flash_attention_2",
        "pad_token": "<|end_of_text|>",
        "additional_special_tokens": ["<|end_of_text|>", "<s>"],
        "bos_token": "<s>",
        "dtype": "bfloat16",
        "float32_norms": False,
    }
    assert any("chatml" in note for note in found.notes)
    assert {"datasets", "micro_batch_size", "bf16"} <= set(found.trainer)
    for text in ("adapter: lora\nlora_model_dir: ./mine\n", "lora_model_dir: ./mine\nadapter: lora\n"):
        resumed = recipe("base_model: a/b\nlora_r: 8\n" + text)
        assert resumed.options == {
            "training": True,
            "adapter": "./mine",
            "adapter_dtype": "float32",
            "dtype": "bfloat16",
        }


LORA = {"adapter": True, "lora_dropout": 0.0, "lora_vision": True, "adapter_dtype": "float32"}
"""What axolotl and PEFT have for an adapter, where a recipe is silent."""


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("model_revision: abc", {"revision": "abc"}),
        ("revision_of_model: abc", {"revision": "abc"}),
        ("model_config: {rope_theta: 5}\nmodel_kwargs: {use_safetensors: true}", {"model_kwargs": {"rope_theta": 5, "use_safetensors": True}}),
        ("model_type: LlamaForCausalLM", {"task": "text", "model_class": "LlamaForCausalLM"}),
        ("model_type: LlamaForCausalLM\ntrust_remote_code: true", {"trust_remote_code": True}),
        ("model_type: AutoModelForCausalLM\ncls_model_config: AutoConfig\ntokenizer_type: AutoTokenizer", {}),
        ("reward_model: true", {"task": "sequence-classification", "model_kwargs": {"num_labels": 1}}),
        ("reward_model: true\nnum_labels: 3", {"task": "sequence-classification", "model_kwargs": {"num_labels": 3}}),
        ("process_reward_model: true", {"task": "token-classification", "model_kwargs": {"num_labels": 2}}),
        ("adapter: lora\nlora_target_modules: embed_tokens\nlora_target_linear: true", {**LORA, "lora_target_modules": ["embed_tokens", "every-linear"]}),
        ("adapter: lora\nlora_rank_pattern: {q_proj: 2}\npeft_layers_to_transform: [0]\nlora_fan_in_fan_out: false", {**LORA, "peft_config": {"rank_pattern": {"q_proj": 2}, "layers_to_transform": [0]}}),
        ("lora_rank_pattern: {q_proj: 2}", {}),
        ("adapter: lora\nload_in_4bit: true", {**LORA, "load_in_4bit": False}),
        ("adapter: lora\nload_in_8bit: 1", {**LORA, "load_in_8bit": True, "float32_norms": False}),
        ("adapter: lora\nload_in_8bit: 'yes'", {**LORA, "load_in_8bit": True, "float32_norms": False}),
        ("adapter: lora\nload_in_8bit: 'False'", LORA),
        ("model_kwargs: {attn_implementation: eager, use_safetensors: true}", {"attn_implementation": "eager", "model_kwargs": {"use_safetensors": True}}),
        ("model_type: AutoModelForSequenceClassification\nnum_labels: 1\nreward_model: true", {"task": "sequence-classification", "model_kwargs": {"num_labels": 1}}),
        ("adapter: lora\nlora_target_modules: [q_proj]\nlora_target_linear: true", {**LORA, "lora_target_modules": ["q_proj", "every-linear"]}),
        ("adapter: lora\nlora_target_linear: true\nlora_target_modules:", {**LORA, "lora_target_modules": ["every-linear"]}),
        ("adapter: lora\nlora_target_modules: all-linear\npeft_autocast_adapter_dtype: false", {**LORA, "adapter_dtype": "auto", "lora_target_modules": "all-linear"}),
        ("adapter: lora\nlora_exclude_modules: [k_proj]\nunfrozen_parameters: [lm_head]", {**LORA, "lora_exclude_modules": ["k_proj"], "train_only": ["lm_head"]}),
        ("unfrozen_parameters:\n- ^model.layers.[0-3].+\n- lm_head", {"train_only": ["^model\\.layers\\.[0-3].+", "lm_head"]}),
        ("model_quantization_config: Mxfp4Config\nmodel_quantization_config_kwargs: {dequantize: true}", {"dequantize": True}),
        ("freeze_mm_modules: true", {"frozen_parts": ["towers", "projector"]}),
        ("special_tokens: {eos_token: <e>, pad_token: <p>}", {"eos_token": "<e>", "pad_token": "<p>", "additional_special_tokens": ["<e>", "<p>"]}),
        ("adapter: qlora\nbnb_config_kwargs: {bnb_4bit_quant_type: fp4, llm_int8_skip_modules: [lm_head]}", {**LORA, "load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": True, "bnb_4bit_quant_storage": "bfloat16", "skip_modules": ["lm_head"], "float32_norms": False}),
        ("tokens: [<a>, <b>]\nspecial_tokens: {additional_special_tokens: [<c>, <a>]}", {"additional_special_tokens": ["<a>", "<b>", "<c>"]}),
        ("tokens: {pad_token: '[PAD]', unk_token: <unk>}", {"pad_token": "[PAD]", "unk_token": "<unk>", "additional_special_tokens": ["[PAD]", "<unk>"]}),
        ("chat_template: jinja\nchat_template_jinja: '{{ 1 }}'", {"chat_template": "{{ 1 }}"}),
        ("chat_template: tokenizer_default_fallback_chatml", {}),
        ("gradient_checkpointing: offload", {"gradient_checkpointing": True, **REENTRANT}),
        ("xformers_attention: true", {}),
        ("attn_implementation: sage", {}),
        ("attn_implementation: kernels-community/flash-attn3", {"attn_implementation": "kernels-community/flash-attn3"}),
        ("flash_attention:\nsdp_attention: true", {"attn_implementation": "sdpa"}),
        ("eager_attention: true\nsdp_attention: true\nflash_attention: true", {"attn_implementation": "flash_attention_2"}),
        ("lora_r: 8", {}),
    ],
)  # fmt: skip
def test_axolotls_keys(recipe: Read, text: str, options: dict[str, Any]) -> None:
    assert recipe(f"base_model: a/b\n{text}\n").options == {"training": True, "dtype": "bfloat16", **options}


@pytest.mark.parametrize(
    ("text", "dtype"),
    [
        ("", "bfloat16"),
        ("bf16: auto", "bfloat16"),
        ("bf16: auto\nfp16: true", "float16"),
        ("bf16: true\nfp16:", "bfloat16"),
        ("bf16: false\nfp16: true", "float16"),
        ("bf16: false", "float32"),
        ("bf16: false\nfp16: false\nadapter: lora\nload_in_8bit: true", "float16"),
        ("float32: true", "bfloat16"),
        ("float16: true", "bfloat16"),
        ("bf16: false\nfloat16: true", "float16"),
        ("bf16:\n", "float32"),
        ("bf16:\nfp16: true", "float16"),
        ("bf16: true\nfp16: true", "bfloat16"),
    ],
)
def test_axolotls_dtype(recipe: Read, text: str, dtype: str) -> None:
    """It loads in what it computes in, and bf16: auto is its default."""
    assert recipe(f"base_model: a/b\n{text}\n").options["dtype"] == dtype


def test_an_axolotl_recipe_without_a_model(recipe: Read) -> None:
    found = recipe("adapter: qlora\nlora_target_linear: true\nmicro_batch_size: 2\n")
    assert (found.dialect, found.source, found.options["load_in_4bit"]) == ("axolotl", "", True)


def test_a_llama_factory_recipe(recipe: Read) -> None:
    found = recipe(LLAMA_FACTORY)
    assert found.dialect == "llama-factory"
    assert found.options == {
        "training": True,
        "adapter": True,
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "trust_remote_code": True,
        "lora_r": 8,
        "lora_alpha": 16,
        "lora_dropout": 0.0,
        "lora_target_modules": "every-linear",
        "attn_implementation": "flash_attention_2",
        "gradient_checkpointing": True,
        "bnb_4bit_compute_dtype": "bfloat16",
        "bnb_4bit_quant_storage": "bfloat16",
        "float32_norms": False,
        "adapter_dtype": "float32",
        "frozen_parts": ["towers", "projector"],
        **TRAINS,
        **REENTRANT,
    }
    assert {"template", "stage", "cutoff_len"} <= set(found.trainer)
    full = recipe("do_train: true\nfinetuning_type: full\ndisable_gradient_checkpointing: true\nbf16: true\n")
    assert full.options == {
        "training": True,
        "adapter": False,
        "gradient_checkpointing": False,
        "trainable_dtype": "float32",
        "frozen_parts": ["towers", "projector"],
        **TRAINS,
    }
    listed = recipe("do_train: true\nlora_rank: 4\nlora_target: q_proj, v_proj\nlora_alpha: '12'\n")
    assert listed.options["lora_target_modules"] == ["q_proj", "v_proj"]
    assert listed.options["lora_alpha"] == 12


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("pissa_init: true", {"init_lora_weights": "pissa_niter_16"}),
        ("pissa_init: true\npissa_iter: 4\npissa_convert: true", {"init_lora_weights": "pissa_niter_4"}),
        ("pissa_iter: -1\npissa_init: true", {"init_lora_weights": "pissa"}),
        ("additional_target: embed_tokens,lm_head", {"lora_modules_to_save": ["embed_tokens", "lm_head"]}),
        (
            "add_tokens: <a>\nadd_special_tokens: <b>, <c>",
            {"additional_special_tokens": ["<a>", "<b>", "<c>"], "pad_to_multiple_of": 64},
        ),
        ("freeze_vision_tower: false", {"lora_vision": True, "frozen_parts": ["projector"]}),
        (
            "freeze_vision_tower: false\nfreeze_language_model: true",
            {"lora_vision": True, "frozen_parts": ["projector", "language-model"]},
        ),
        ("freeze_multi_modal_projector: false", {"frozen_parts": ["towers"]}),
        ("adapter_name_or_path: ./a\ncreate_new_adapter: true", {"adapter": "./a", "new_adapter": True}),
        ("pure_bf16: true", {"adapter_dtype": None}),
        ("bf16: true\ninfer_dtype: float16", {}),  # the base's dtype is the checkpoint's
        ("resize_vocab: true", {}),
        ("quantization_bit: '8'\nupcast_layernorm: true", {"load_in_8bit": True, "float32_norms": True}),
        ("use_reentrant_gc: false", {"gradient_checkpointing_kwargs": {"use_reentrant": False}}),
        ("flash_attn: auto", {}),
        ("flash_attn: disabled", {"attn_implementation": "eager"}),
        ("quantization_method: hqq", {}),
    ],
)
def test_llama_factorys_keys(recipe: Read, text: str, options: dict[str, Any]) -> None:
    expected = {
        "training": True,
        "adapter": True,
        "gradient_checkpointing": True,
        "lora_r": 8,
        "lora_alpha": 16,
        "lora_dropout": 0.0,
        "lora_target_modules": "every-linear",
        "adapter_dtype": "float32",
        "frozen_parts": ["towers", "projector"],
        **TRAINS,
        **REENTRANT,
        **options,
    }
    found = recipe(f"do_train: true\nfinetuning_type: lora\n{text}\n").options
    assert found == {name: value for name, value in expected.items() if value is not None}


def test_llama_factorys_files_that_dont_train(recipe: Read) -> None:
    """Without do_train it chats, serves, predicts or merges: no new adapter, and an old one is frozen or
    merged."""
    chat = recipe("model_name_or_path: a/b\ntemplate: t\ninfer_backend: huggingface\ninfer_dtype: float16\n")
    assert chat.options == {
        "training": False,
        "gradient_checkpointing": False,
        "dtype": "float16",
        **RUNS,
    }
    predicted = recipe("adapter_name_or_path: ./mine\ndo_predict: true\nfinetuning_type: lora\nstage: sft\n")
    assert predicted.options == {
        "training": False,
        "gradient_checkpointing": False,
        "adapter": "./mine",
        **RUNS,
    }
    merged = recipe("adapter_name_or_path: ./mine\ntemplate: t\nexport_dir: out\n")
    assert merged.options == {**predicted.options, "merge_adapter": True}


def test_llama_factorys_freeze_tuning(recipe: Read) -> None:
    text = "do_train: true\nfinetuning_type: freeze\nfreeze_trainable_layers: 4\nfreeze_trainable_modules: mlp\nuse_llama_pro: true\n"
    found = recipe(text).options
    assert found["train_layers"] == {"count": 4, "modules": ["mlp"], "spread": True}
    assert found["trainable_dtype"] == "float32"
    assert recipe("do_train: true\nfinetuning_type: freeze\n").options["train_layers"] == {}


LLAMA_FACTORY_V1 = """
model: owner/model
model_class: llm
peft_config: {name: lora, r: 4, target_modules: all}
quant_config: {name: bnb, quantization_bit: 4}
dist_config: {name: fsdp2, dcp_path: null}
train_dataset: data.yaml
cutoff_len: 512
"""


def test_llama_factorys_second_dialect(recipe: Read) -> None:
    found = recipe(LLAMA_FACTORY_V1)
    assert (found.dialect, found.source) == ("llama-factory-v1", "owner/model")
    assert found.options == {
        "training": True,
        "float32_norms": False,
        "adapter": True,
        "lora_r": 4,
        "lora_alpha": 16,
        "lora_dropout": 0.05,
        "lora_target_modules": "every-linear",
        "lora_vision": True,
        "adapter_dtype": "float32",
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": "float16",
        "attn_implementation": "sdpa",
        "gradient_checkpointing": True,
    }
    assert set(found.trainer) == {"dist_config", "train_dataset", "cutoff_len"}
    full = recipe("model: a/b\ntrain_dataset: d\npeft_config: null\n").options
    assert (full["adapter"], full["dtype"]) == (False, "float32")
    frozen = recipe(
        "model: a/b\npeft_config: {name: freeze, freeze_trainable_layers: 1, freeze_extra_modules: [embed_tokens]}\n"
    )
    assert frozen.options["train_layers"] == {"count": 1, "also": ["embed_tokens"]}
    assert (frozen.options["adapter"], frozen.options["trainable_dtype"]) == (False, "float32")
    merged = recipe("model: a/b\npeft_config: {name: lora, adapter_name_or_path: ./mine, export_dir: out}\n")
    assert (merged.options["training"], merged.options["merge_adapter"]) == (False, True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("base_model: a\nchat_template: chatml\n", "give chat_template="),
        ("base_model: a\nspecial_tokens: {sep_token: <s>}\n", "special_tokens.sep_token has no counterpart"),
        ("base_model: a\nadapter: lora\nload_in_4bit: true\n", "with adapter: qlora alone"),
        ("base_model: a\nadapter: lora\n", "axolotl would refuse"),
        ("base_model: a\nsdp_attention: true\n", "norms to float32"),
        ("base_model: a\nfloat32: true\n", "goes by bf16 and fp16 alone"),
        ("base_model: a\nbf16: true\nfp16: true\n", "bf16 counts, not fp16"),
        ("base_model: a\nreward_model: true\ntrust_remote_code: true\n", "here it is a classifier"),
        ("base_model: a\ntokenizer_type: LlamaTokenizer\n", "its own files say"),
        ("base_model: a\ntokenizer_use_fast: false\n", "the fast ones"),
        ("base_model: a\ncls_model_config: LlamaConfig\n", "own config class"),
        ("base_model: a\nprocessor_type: LlavaProcessor\n", "its own files say"),
        ("base_model: a\nflash_attn_fuse_mlp: true\n", "not fused"),
        ("do_train: true\nlora_rank: 8\nuse_megatron_bridge: true\n", "Megatron"),
        ("do_train: true\nlora_rank: 8\nresize_vocab: true\n", "trains the embeddings"),
        ("do_train: true\nlora_rank: 8\nadd_tokens: <a>\n", "give additional_target"),
        ("infer_backend: vllm\ntemplate: t\n", "loaded with transformers"),
        ("base_model: a\ntokens: [<a>]\n", "added as special tokens"),
        ("base_model: a\ngradient_checkpointing: offload_disk\n", "moving activations away is the trainer's"),
        ("base_model: a\nattn_implementation: xformers\n", "not part of transformers"),
        ("base_model: a\nbf16: auto\n", "axolotl loads in bfloat16"),
        ("base_model: a\nfloat16: true\n", "where bf16 is off alone"),
        ("do_train: true\nlora_rank: 8\n", "finetuning_type isn't given"),
        ("finetuning_type: lora\n", "nothing trains"),
        ("template: llama3\n", "keeps its chat template"),
        ("finetuning_type: full\nfreeze_trainable_layers: 2\n", "no effect without finetuning_type=freeze"),
        ("base_model: a\nlora_on_gpu: true\n", "is no known key of axolotl's recipes (lora_on_cpu is one)"),
        ("base_model: a\nmystery: true\n", "mystery is no known key"),
        ("finetuning_type: lora\nstage: rm\n", "value head"),
        ("do_train: true\nlora_rank: 8\ninfer_dtype: float16\n", "infer_dtype has no effect beside do_train"),
    ],
)
def test_what_isnt_translated_one_to_one_is_noted(recipe: Read, text: str, words: str) -> None:
    assert any(words in note for note in recipe(text).notes)


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("atn_implementation: sdpa\n", "recipe-misspelt-key", "looks like 'attn_implementation'"),
        ("model_name_or_pat: a/b\n", "recipe-misspelt-key", "looks like 'model_name_or_path'"),
        ("load_in_4bits: true\n", "recipe-misspelt-key", "load_in_4bit"),
        ("LORA_R: 8\n", "recipe-misspelt-key", "lora_r"),
        ("base_model: a\nlora_target_lineer: true\n", "recipe-misspelt-key", "lora_target_linear"),
        ("base_model: a\nrope_scalin: {}\n", "recipe-misspelt-key", "rope_scaling"),
        ("load_in_4bit: true\nload_in_8bit: true\n", "recipe-contradiction", "exclude each other"),
        ("base_model: a\nadapter: qlora\nload_in_8bit: true\n", "recipe-contradiction", "qlora is 4-bit"),
        ("base_model: a\nadapter: qlora\nload_in_4bit: false\n", "recipe-contradiction", "qlora is 4-bit"),
        ("base_model: a\nmodel_config: {a: 1}\nmodel_kwargs: {a: 2}\n", "recipe-key-twice", "model_config and model_kwargs"),
        ("adapter_name_or_path: ./mine\nfinetuning_type: full\n", "recipe-key-twice", "settle adapter"),
        ("quantization_bit: 3\n", "recipe-bad-value", "quantization_bit can be 4, 8"),
        ("quantization_bit: 4\nquantization_method: hqq\n", "recipe-bad-value", "bnb"),
        ("finetuning_type: oft\n", "recipe-bad-value", "lora, full, freeze"),
        ("do_train: true\nfinetuning_type: full\nstage: stf\n", "recipe-bad-value", "stage can be"),
        ("finetuning_type: lora\nuse_llama_pro: true\n", "recipe-contradiction", "pattern of the layers"),
        ("base_model: a\nunfrozen_parameters: ['^model.embed_tokens.weight$[:32000]']\n", "recipe-bad-value", "rows of a parameter"),
        ("do_train: true\nfinetuning_type: full\nquantization_bit: 4\n", "recipe-contradiction", "through an adapter"),
        ("do_train: true\nfinetuning_type: freeze\nquantization_bit: 8\n", "recipe-contradiction", "through an adapter"),
        ("do_train: true\nlora_rank: 4\nquantization_bit: 4\nresize_vocab: true\n", "recipe-contradiction", "keeps its vocabulary"),
        ("base_model: a\nadapter: qlora\nload_in_4bit: true\nmodel_quantization_config: Mxfp4Config\n", "recipe-contradiction", "keep one"),
        ("base_model: a\nqat: {weight_dtype: int4}\n", "recipe-untranslated", "no counterpart"),
        ("base_model: a\nuse_onebitllms: true\n", "recipe-untranslated", "one-bit"),
        ("model: a\npeft_config: {name: oft}\n", "recipe-bad-value", "lora, freeze"),
        ("model: a\npeft_config: {name: lora, lora_alhpa: 3}\n", "recipe-misspelt-key", "peft_config.lora_alpha"),
        ("adapter_name_or_path: ./one,./two\n", "recipe-bad-value", "names several"),
        ("base_model: a\nmodel_type: MambaLMHeadModel\n", "recipe-bad-value", "ForCausalLM"),
        ("lora_task_type: NOPE\n", "recipe-bad-value", "SEQ_CLS"),
        ("use_peft: perhaps\n", "recipe-bad-value", "use_peft can be true, false"),
        ("use_peft: true\nlora_r: many\n", "recipe-bad-value", "lora_r: many isn't a number"),
        ("use_peft: true\nlora_dropout: nan\n", "recipe-bad-value", "isn't a number"),
        ("use_peft: true\nlora_alpha: true\n", "recipe-bad-value", "isn't a number"),
        ("model_name_or_path: 7\n", "recipe-bad-value", "isn't a text"),
        ("base_model: a\nspecial_tokens: 5\n", "recipe-bad-value", "isn't a mapping"),
        ("base_model: a\nrope_scaling: {type: linear}\n", "recipe-untranslated", "model_kwargs"),
        ("base_model: a\npeft: {loftq_config: {loftq_bits: 4}}\n", "recipe-untranslated", "peft_config"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_reported(reported: Reported, text: str, code: str, words: str) -> None:
    found = reported(text)
    assert list(found) == [code]
    assert words in found[code]


@pytest.mark.parametrize(
    "text",
    [
        "base_model: a\nflash_attention: true\n",
        "base_model: a\nattn_implementation: kernels-community/flash-attn3\n",
        "base_model: a\nfsdp_config: {offload_params: true}\n",
        "base_model: a\ncut_cross_entropy: true\n",
        "base_model: a\nadapter: lora\nlora_target_linear: true\n",
        "base_model: a\nbf16: false\n",
    ],
)
def test_axolotls_float32_embeddings_are_told_where_it_has_them(recipe: Read, text: str) -> None:
    """It casts them back for an adapter, for FSDP, and for attention that wants 16 bits."""
    assert not any("norms to float32" in note for note in recipe(text).notes)


def test_a_place_that_nobody_fills_in_is_an_error(reported: Reported) -> None:
    assert (
        "write out what belongs there"
        in reported("model_name_or_path: a\ndtype: ${DTYPE}\n")["recipe-bad-value"]
    )
    assert (
        "write out what belongs there"
        in reported("model_name_or_path: ${oc.env:MODEL}\n")["recipe-bad-value"]
    )
    assert reported("model_name_or_path: a\nrun_name: ${RUN}\n") == {}
