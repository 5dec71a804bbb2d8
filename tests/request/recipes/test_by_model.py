"""What a stack does for some models only, and what it does whatever the recipe says of tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import loadkit
from loadkit.request.recipes.by_model import ByModel, options_for

Written = Callable[[str], Path]

SIZES = {
    "vocab_size": 64, "hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "num_experts": 2, "moe_intermediate_size": 128, "shared_expert_intermediate_size": 128,
    "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1,
    "mamba_d_state": 4, "mamba_dt_rank": 4, "use_mamba_kernels": False,
}  # fmt: skip


@pytest.fixture
def small(tiny: Any, tmp_path: Path) -> Callable[[str], Path]:
    """A checkpoint of a model type; of one that the kit doesn't make, without a tokenizer."""

    def make(kind: str) -> Path:
        if kind in ("mistral", "gemma3"):
            return Path(tiny(kind))
        import transformers

        config = transformers.AutoConfig.for_model(kind)
        fresh = type(config)(**{n: v for n, v in SIZES.items() if hasattr(config, n)})
        transformers.AutoModelForCausalLM.from_config(fresh).save_pretrained(tmp_path / kind)
        return tmp_path / kind

    return make


def test_rules_for_models() -> None:
    rules = (
        ByModel(model_types=("a",), options={"skip_modules": ["x"]}),
        ByModel(model_types=("a", "b"), options={"kind": "new"}, over=True),
        ByModel(model_types=("a",), options={"kept": "new"}),
        ByModel(below={"length": 10}, note="short"),
    )
    given = {"skip_modules": ["head"], "kind": "old", "kept": "old"}
    assert options_for(rules, given, "a", {"length": 9}) == (
        {"skip_modules": ["head", "x"], "kind": "new"},
        ["short"],
    )
    assert options_for(rules, given, "b", {"length": 10}) == ({"kind": "new"}, [])
    assert options_for(rules, given, "c", {"length": None}) == ({}, [])


AXOLOTL = "base_model: BASE\nadapter: qlora\nload_in_4bit: true\nlora_target_linear: true\nlora_r: 4\nlora_alpha: 8\n"


@pytest.mark.parametrize(
    ("arch", "more", "storage", "reentrant"),
    [
        ("mistral", "", "bfloat16", None),
        ("mistral", "gradient_checkpointing: true\n", "bfloat16", True),
        ("mistral", "gradient_checkpointing: true\nrl: dpo\n", "bfloat16", False),
        ("mistral", "gradient_checkpointing: true\ngradient_checkpointing_kwargs: {use_reentrant: false}\n", "bfloat16", False),
        ("qwen2_moe", "", "float32", None),
        ("qwen2_moe", "deepspeed: zero2.json\n", "bfloat16", None),
        ("qwen2_moe", "bnb_config_kwargs: {bnb_4bit_quant_storage: uint8}\n", "uint8", None),
    ],
)  # fmt: skip
def test_how_axolotl_packs_and_checkpoints(
    small: Any, written: Written, arch: str, more: str, storage: str, reentrant: bool | None
) -> None:
    recipe = written(AXOLOTL.replace("BASE", str(small(arch))) + more)
    plan = loadkit.plan(recipe=recipe)
    assert plan.quantization is not None
    assert plan.quantization.options["bnb_4bit_quant_storage"] == storage
    assert plan.preparation.gradient_checkpointing_kwargs.get("use_reentrant") is reentrant
    yours = loadkit.plan(recipe=recipe, bnb_4bit_quant_storage="float16")
    assert yours.quantization is not None
    assert yours.quantization.options["bnb_4bit_quant_storage"] == "float16"


def test_modules_that_axolotl_leaves_out(small: Any, written: Written) -> None:
    text = "base_model: BASE\nadapter: lora\nload_in_8bit: true\nlora_target_modules: [q_proj]\nlora_r: 4\nlora_alpha: 8\n"
    plan = loadkit.plan(recipe=written(text.replace("BASE", str(small("jamba")))))
    assert plan.quantization is not None
    assert "mamba" in plan.quantization.skip_modules
    other = loadkit.plan(recipe=written(text.replace("BASE", str(small("mistral")))))
    assert other.quantization is not None
    assert "mamba" not in other.quantization.skip_modules


def test_longer_than_the_models_positions(tiny: Any, written: Written) -> None:
    for length, told in ((8, False), (1_000_000, True)):
        plan = loadkit.plan(recipe=written(f"base_model: {tiny('mistral')}\nsequence_len: {length}\n"))
        assert any("raises to it" in w.message for w in plan.warnings) is told


def test_rows_for_a_multiple_of_the_tokens(tiny: Any, written: Written) -> None:
    """axolotl rounds the tokens up, and grows the embeddings where they have fewer rows."""
    base = tiny("mistral")
    tokens = len(loadkit.load_processing_class(base))
    rows = loadkit.load(base).model.get_input_embeddings().num_embeddings
    for multiple in (rows + 8, max(2, rows // 8)):
        loaded = loadkit.load(base, vocabulary_to_multiple_of=multiple)
        rounded = -(-tokens // multiple) * multiple
        assert loaded.model.get_input_embeddings().num_embeddings == max(rows, rounded)
        assert loaded.model.config.vocab_size == max(rows, rounded)
    with pytest.raises(loadkit.PlanError, match="bad-multiple"):
        loadkit.plan(base, vocabulary_to_multiple_of=0)
    recipe = written(f"base_model: {base}\nresize_token_embeddings_to_32x: true\n")
    assert loadkit.plan(recipe=recipe).tokens.vocabulary_to_multiple_of == 32


def test_frozen_beside_an_adapter(tiny: Any, written: Written) -> None:
    adapter = "adapter: lora\nlora_target_linear: true\nlora_r: 4\nlora_alpha: 8\n"
    told = loadkit.plan(
        recipe=written(f"base_model: {tiny('mistral')}\n{adapter}unfrozen_parameters: [lm_head]\n")
    )
    assert any("the adapter's own weights too" in w.message for w in told.warnings)
    towers = loadkit.load(recipe=written(f"base_model: {tiny('gemma3')}\n{adapter}freeze_mm_modules: true\n"))
    assert not [n for n, _ in towers.model.named_parameters() if "lora_" in n and "vision" in n]


@pytest.mark.parametrize(
    ("arch", "text", "told"),
    [
        ("mixtral", "base_model: BASE\nsequence_len: 8\n", "routers that are named gate"),
        ("mistral", "base_model: BASE\nsequence_len: 8\n", None),
        ("mixtral", AXOLOTL, "fused experts and states among it"),
        ("mistral", AXOLOTL, None),
        ("mistral", f"{AXOLOTL}lora_modules_to_save: [lm_head]\n", "axolotl leaves them in the base's dtype"),
        ("mistral", f"{AXOLOTL}bnb_config_kwargs: {{llm_int8_skip_modules: [q_proj]}}\n", "the output head stays"),
        ("mistral", f"{AXOLOTL}qat: {{activation_dtype: int8}}\n", "qat changes what is loaded"),
        ("mistral", "base_model: BASE\nflash_optimum: true\n", "flash_optimum changes what is loaded"),
        ("mistral", "model_name_or_path: BASE\nuse_peft: true\nqat: true\n", "qat changes what is loaded"),
        ("mistral", "model_name_or_path: BASE\nuse_peft: true\nload_in_4bit: true\n", "TRL 1.16 leaves them"),
        ("mistral", "model_name_or_path: BASE\ndo_train: true\nquantization_bit: 4\n", "packed in bytes"),
        ("mistral", "model_name_or_path: BASE\ndo_train: true\ntemplate: x\nfinetuning_type: lora\nqat: true\n", "qat is no known key"),
    ],
)  # fmt: skip
def test_what_differs_is_told(tiny: Any, written: Written, arch: str, text: str, told: str | None) -> None:
    plan = loadkit.plan(recipe=written(text.replace("BASE", str(tiny(arch)))))
    words = [w.message for w in plan.warnings]
    if told is not None:
        assert any(told in message for message in words)
    else:
        assert not any("routers" in message or "fused experts" in message for message in words)


@pytest.mark.parametrize(
    ("more", "skipped", "told"),
    [
        ("", ["experts"], "aren't quantized, as axolotl has it"),
        ("quantize_moe_experts: false\n", ["experts"], "aren't quantized, as axolotl has it"),
        ("quantize_moe_experts: true\n", [], ""),
        ("llama4_linearized_experts: true\n", [], "isn't translated"),
        ("bnb_config_kwargs: {llm_int8_skip_modules: [gate]}\n", ["gate", "experts"], "aren't quantized"),
    ],
)
def test_axolotl_quantizes_experts_where_it_is_told_to(
    small: Any, written: Written, more: str, skipped: list[str], told: str
) -> None:
    """Experts are packed here without being asked: what axolotl leaves as it is stays so."""
    plan = loadkit.plan(recipe=written(AXOLOTL.replace("BASE", str(small("qwen2_moe"))) + more))
    assert [each for each in plan.quantization.skip_modules if each != "lm_head"] == skipped
    assert bool(plan.quantization.options.get("packed_parameters")) is (skipped == [])
    assert told in " ".join(problem.message for problem in plan.warnings)


def test_without_experts_nothing_is_said_of_them(small: Any, written: Written) -> None:
    plan = loadkit.plan(
        recipe=written(AXOLOTL.replace("BASE", str(small("mistral"))) + "quantize_moe_experts: true\n")
    )
    assert "experts" not in plan.quantization.skip_modules
    assert "experts" not in " ".join(problem.message for problem in plan.warnings)


@pytest.mark.parametrize(
    "text",
    [
        "model_name_or_path: BASE\nuse_peft: true\nload_in_4bit: true\ndtype: bfloat16\n",
        "model_name_or_path: BASE\nstage: sft\ndo_train: true\nfinetuning_type: lora\nquantization_bit: 4\nbf16: true\n",
        "model: BASE\ntrain_dataset: d\npeft_config: {name: lora, r: 4}\nquant_config: {name: bnb, quantization_bit: 4}\n",
    ],
    ids=["trl", "llama-factory", "llama-factory-v1"],
)
def test_stacks_that_never_quantize_experts_are_overruled_aloud(
    small: Any, written: Written, text: str
) -> None:
    plan = loadkit.plan(recipe=written(text.replace("BASE", str(small("qwen2_moe")))))
    assert plan.quantization.options["packed_parameters"]
    assert "fused experts are quantized too" in " ".join(problem.message for problem in plan.warnings)
