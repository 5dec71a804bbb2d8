"""Training recipes as people keep them: their loading keys become options, the trainer's stay untouched."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import loadkit
from loadkit.cli import main
from loadkit.recipes import Recipe, read_recipe
from loadkit.recipes.tables import dialects

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


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def recipe(tmp_path: Path, text: str) -> Recipe:
    """The recipe of a file that is in order."""
    found, problems = read_recipe(written(tmp_path, text))
    assert problems == []
    assert found is not None
    return found


def told(tmp_path: Path, text: str) -> dict[str, str]:
    """Code to text of everything that is wrong with a recipe."""
    problems = read_recipe(written(tmp_path, text))[1]
    assert all(p.remedy and p.stage == "request" for p in problems)
    return {p.code: f"{p.message} | {p.remedy}" for p in problems}


def test_a_handbook_recipe(tmp_path: Path) -> None:
    found = recipe(tmp_path, HANDBOOK_QLORA)
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
    }
    assert found.trainer["learning_rate"] == 2e-4
    assert found.trainer["dataset_mixer"] == {"some/dataset": 1.0}
    assert found.shared == ("chat_template", "gradient_checkpointing", "gradient_checkpointing_kwargs")
    assert set(found.shared) < set(found.trainer)
    assert "torch_dtype" not in found.trainer


def test_full_training_leaves_the_dtype_to_the_checkpoint(tmp_path: Path) -> None:
    """TRAPS 23: None means "auto" now. Mixed precision keeps weights in the dtype that they were loaded in."""
    assert recipe(tmp_path, HANDBOOK_DPO).options == {"training": True, "gradient_checkpointing": True}
    frozen = recipe(tmp_path, HANDBOOK_DPO + "use_peft: true\n")
    assert frozen.options["dtype"] == "bfloat16"
    assert "no dtype is named" in frozen.notes[0]
    for name in ("dtype", "torch_dtype"):
        assert recipe(tmp_path, f"{name}: float16\n").options["dtype"] == "float16"
        assert "dtype" not in recipe(tmp_path, f"{name}: auto\n").options
    both = told(tmp_path, "dtype: float16\ntorch_dtype: bfloat16\n")
    assert "keep dtype or torch_dtype" in both["recipe-key-twice"]
    assert recipe(tmp_path, "dtype: float16\ntorch_dtype: float16\n").options["dtype"] == "float16"


def test_an_open_r1_recipe(tmp_path: Path) -> None:
    found = recipe(tmp_path, OPEN_R1_GRPO)
    assert found.options == {
        "training": True,
        "dtype": "bfloat16",
        "attn_implementation": "flash_attention_2",
        "eos_token": "<|im_end|>",
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
    }
    assert {"reward_funcs", "system_prompt", "use_vllm", "eos_token"} <= set(found.trainer)


def test_trls_defaults_of_an_adapter(tmp_path: Path) -> None:
    found = recipe(tmp_path, "use_peft: true\nlora_task_type: SEQ_CLS\n")
    assert found.options == {
        "training": True,
        "adapter": True,
        "task": "sequence-classification",
        "lora_r": 16,
        "lora_alpha": 32,
        "lora_dropout": 0.05,
    }


def test_settings_of_what_is_off_are_left_out_in_plain_sight(tmp_path: Path) -> None:
    found = recipe(tmp_path, "use_peft: false\nlora_r: 8\nbnb_4bit_quant_type: nf4\nload_in_4bit: false\n")
    assert found.options == {"training": True, "adapter": False}
    assert found.notes == (
        "lora_r has no effect without use_peft, and is left out",
        "bnb_4bit_quant_type has no effect without load_in_4bit, and is left out",
    )


def test_an_axolotl_recipe(tmp_path: Path) -> None:
    found = recipe(tmp_path, AXOLOTL)
    assert (found.dialect, found.source) == ("axolotl", "NousResearch/Llama-3.2-1B")
    assert found.options == {
        "training": True,
        "adapter": True,
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "lora_r": 32,
        "lora_alpha": 16,
        "lora_dropout": 0.05,
        "lora_target_modules": "all-linear",
        "gradient_checkpointing": True,
        "attn_implementation": "flash_attention_2",
        "pad_token": "<|end_of_text|>",
    }
    assert any("chatml" in note for note in found.notes)
    assert any("special_tokens.bos_token" in note for note in found.notes)
    assert {"datasets", "micro_batch_size", "bf16"} <= set(found.trainer)
    for text in ("adapter: lora\nlora_model_dir: ./mine\n", "lora_model_dir: ./mine\nadapter: lora\n"):
        assert recipe(tmp_path, "base_model: a/b\n" + text).options["adapter"] == "./mine"


def test_a_llama_factory_recipe(tmp_path: Path) -> None:
    found = recipe(tmp_path, LLAMA_FACTORY)
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
        "lora_target_modules": "all-linear",
        "attn_implementation": "flash_attention_2",
        "gradient_checkpointing": True,
        "dtype": "bfloat16",
    }
    assert {"template", "stage", "cutoff_len"} <= set(found.trainer)
    full = recipe(tmp_path, "finetuning_type: full\ndisable_gradient_checkpointing: true\nbf16: true\n")
    assert full.options == {"training": True, "adapter": False, "gradient_checkpointing": False}
    listed = recipe(tmp_path, "lora_rank: 4\nlora_target: q_proj, v_proj\nlora_alpha: '12'\n")
    assert listed.options["lora_target_modules"] == ["q_proj", "v_proj"]
    assert listed.options["lora_alpha"] == 12


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("atn_implementation: sdpa\n", "recipe-misspelt-key", "looks like 'attn_implementation'"),
        ("model_name_or_pat: a/b\n", "recipe-misspelt-key", "looks like 'model_name_or_path'"),
        ("load_in_4bits: true\n", "recipe-misspelt-key", "load_in_4bit"),
        ("base_model: a\nlora_target_lineer: true\n", "recipe-misspelt-key", "lora_target_linear"),
        ("a: [1\n", "recipe-not-yaml", "line 2"),
        ("a: !!python/object/apply:os.system ['true']\n", "recipe-not-yaml", "could not determine a constructor"),
        ("- a\n", "recipe-not-mapping", "a list"),
        ("", "recipe-not-mapping", "nothing"),
        ("1: a\n", "recipe-not-mapping", "key: value"),
        ("dtype: float16\nlora_r: 1\ndtype: bfloat16\n", "recipe-key-twice", "line 3 gives 'dtype' a second time"),
        ("load_in_4bit: true\nload_in_8bit: true\n", "recipe-contradiction", "exclude each other"),
        ("base_model: a\nadapter: qlora\nload_in_8bit: true\n", "recipe-contradiction", "qlora is 4-bit"),
        ("quantization_bit: 3\n", "recipe-bad-value", "quantization_bit can be 4, 8"),
        ("quantization_bit: 4\nquantization_method: hqq\n", "recipe-bad-value", "bnb"),
        ("lora_task_type: NOPE\n", "recipe-bad-value", "SEQ_CLS"),
        ("base_model: a\nspecial_tokens: 5\n", "recipe-bad-value", "isn't a mapping"),
        ("base_model: a\nrope_scaling: {type: linear}\n", "recipe-untranslated", "model_kwargs"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told(tmp_path: Path, text: str, code: str, words: str) -> None:
    assert words in told(tmp_path, text)[code]


def test_a_file_that_isnt_there(tmp_path: Path) -> None:
    found, problems = read_recipe(tmp_path / "nowhere.yaml")
    assert found is None
    assert [p.code for p in problems] == ["recipe-unreadable"]
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert [p.code for p in read_recipe(tmp_path / "binary.yaml")[1]] == ["recipe-unreadable"]


# --- The tables --------------------------------------------------------------------------------------------------------


def test_every_option_of_the_tables_is_one() -> None:
    declared = loadkit.PluginManager(environ={}).options.found
    for dialect in dialects():
        for key, meaning in dialect.keys.items():
            named = [meaning.option, *meaning.fields.values(), *(o for s in meaning.sets.values() for o in s)]
            assert {option for option in named if option} <= set(declared), key
        for default in dialect.defaults:
            assert {*default.options, *default.multiples} <= set(declared)
        assert not set(dialect.trainer) & set(dialect.keys), dialect.name
        assert not set(dialect.untranslated) & {*dialect.keys, *dialect.trainer}, dialect.name


@pytest.mark.filterwarnings("ignore")
def test_every_field_of_the_trainers_is_known() -> None:
    """A key of theirs that looks like a loading key would otherwise be taken for a misspelling of it."""
    import transformers
    import trl

    trl_table = dialects()[-1]
    known = {trl_table.source, *trl_table.keys, *trl_table.trainer, *trl_table.untranslated}
    classes: list[Any] = [transformers.TrainingArguments]
    classes += [
        c for name in dir(trl)
        if name.endswith(("Config", "Arguments")) and inspect.isclass(c := getattr(trl, name)) and dataclasses.is_dataclass(c)
    ]  # fmt: skip
    assert len(classes) > 5
    for kind in classes:
        assert {f.name for f in dataclasses.fields(kind)} <= known, kind.__name__


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.text("xyzwvk_", min_size=3, max_size=12), st.none() | st.booleans() | st.integers() | st.text("ab", max_size=3), max_size=5
    )
)  # fmt: skip
def test_what_isnt_loading_is_the_trainers_untouched(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, Any]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(yaml.safe_dump(content | {"model_name_or_path": "a/b"}), encoding="utf-8")
    found, problems = read_recipe(path)
    assert problems == []
    assert found is not None
    assert found.trainer == content
    assert found.options == {"training": True}


# --- Through plan, load and the command line ---------------------------------------------------------------------------


def test_a_recipe_is_planned_and_loaded(tiny: Any, tmp_path: Path) -> None:
    path = written(tmp_path, HANDBOOK_QLORA.replace("mistralai/Mistral-7B-v0.1", str(tiny("mistral"))))
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


def test_you_beat_the_recipe_and_the_recipe_beats_the_profile(tiny: Any, tmp_path: Path) -> None:
    path = written(tmp_path, "use_peft: true\nlora_r: 32\n")
    plan = loadkit.plan(tiny("mistral"), "qlora", recipe=path)
    assert plan.adapter is not None
    assert plan.adapter.options["r"] == 32
    assert plan.quantization is not None  # the profile's, which the recipe leaves open
    assert "lora_r=32 by recipe 'recipe.yaml', instead of 16 by profile 'qlora'" in str(plan)
    yours = loadkit.plan(tiny("mistral"), "qlora", recipe=path, lora_r=2)
    assert yours.adapter is not None
    assert yours.adapter.options["r"] == 2


def test_problems_of_a_recipe_come_with_the_others(tiny: Any, tmp_path: Path) -> None:
    path = written(
        tmp_path, "atn_implementation: sdpa\nload_in_4bit: true\nload_in_8bit: true\ntorch_dtype: bf17\n"
    )
    with pytest.raises(loadkit.PlanError) as caught:
        loadkit.plan(tiny("mistral"), recipe=path, dtpe="x")
    assert {"recipe-misspelt-key", "recipe-contradiction", "unknown-dtype", "unknown-option"} <= {
        p.code for p in caught.value.problems
    }
    with pytest.raises(loadkit.PlanError, match="names no model"):
        loadkit.plan(recipe=written(tmp_path, "dtype: auto\n"))
    with pytest.raises(loadkit.PlanError, match="neither a model nor a recipe"):
        loadkit.plan()
    with pytest.raises(loadkit.PlanError, match="can't be read"):
        loadkit.load(recipe=tmp_path / "nowhere.yaml")


def test_the_command_line_takes_a_recipe(
    tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, f"model_name_or_path: {tiny('mistral')}\nuse_peft: true\n")
    main(["plan", "--recipe", str(path)], standalone_mode=False)
    assert "LORA (r=16, lora_alpha=32, lora_dropout=0.05" in " ".join(capsys.readouterr().out.split())
