"""Recipes as their stacks load them, one of each class of difference, loaded for real."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import loadkit

Written = Callable[[str], Path]


def adapted(loaded: loadkit.Loaded) -> set[str]:
    """The last names of what LoRA adapts."""
    return {
        n.split(".lora_A")[0].split(".")[-1] for n, _ in loaded.model.named_parameters() if ".lora_A" in n
    }


def adapter_dtypes(loaded: loadkit.Loaded) -> set[torch.dtype]:
    return {p.dtype for n, p in loaded.model.named_parameters() if "lora_" in n}


ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
MLP = {"gate_proj", "up_proj", "down_proj"}
TOWER = {"fc1", "fc2", "out_proj"}


@pytest.mark.parametrize(
    ("arch", "text", "names"),
    [
        ("gemma3", "base_model: BASE\nadapter: lora\nlora_r: 4\nlora_alpha: 8\nlora_target_linear: true\n", ATTENTION | MLP | TOWER),
        ("gemma3", "base_model: BASE\nadapter: lora\nlora_r: 4\nlora_alpha: 8\nlora_target_modules: [q_proj, out_proj]\n", {"q_proj", "out_proj"}),
        ("gemma3", "model_name_or_path: BASE\ndo_train: true\nlora_rank: 4\nbf16: true\n", ATTENTION | MLP),
        ("mixtral", "base_model: BASE\nadapter: lora\nlora_r: 4\nlora_alpha: 8\nlora_target_linear: true\n", ATTENTION),
        ("mistral", "base_model: BASE\nadapter: lora\nlora_r: 4\nlora_alpha: 8\nlora_target_modules: [q_proj, Wqkv]\n", {"q_proj"}),
        ("mistral", "model: BASE\ntrain_dataset: d\npeft_config: {name: lora, r: 4, target_modules: all}\n", ATTENTION | MLP),
        ("mistral", "model_name_or_path: BASE\ndtype: bfloat16\nuse_peft: true\nlora_r: 4\n", {"q_proj", "v_proj"}),
    ],
)  # fmt: skip
def test_what_is_adapted_and_in_which_dtype(
    tiny: Any, written: Written, arch: str, text: str, names: set[str]
) -> None:
    loaded = loadkit.load(recipe=written(text.replace("BASE", str(tiny(arch)))))
    assert adapted(loaded) == names
    assert adapter_dtypes(loaded) == {torch.float32}
    told = [p.value for p in loaded.plan.why("adapter").passed_over]
    assert ("Wqkv" in told) == ("Wqkv" in text)


def test_dropout_is_kept_beside_experts(tiny: Any, written: Written) -> None:
    text = f"base_model: {tiny('mixtral')}\nadapter: lora\nlora_r: 4\nlora_alpha: 8\nlora_dropout: 0.1\n"
    for targets, experts in (
        ("lora_target_linear: true", False),
        ("lora_target_modules: all-linear", True),  # as PEFT means it, but for the router
        ("lora_target_linear: true\nlora_target_parameters: [experts.down_proj]", True),
    ):
        loaded = loadkit.load(recipe=written(f"{text}{targets}\n"))
        layers = {n: m for n, m in loaded.model.named_modules() if hasattr(m, "lora_dropout")}
        assert {m.lora_dropout["default"].p for m in layers.values()} == {0.1}
        assert any(".experts" in name for name in layers) is experts
        assert not any(name.endswith(".gate") for name in layers)


def test_a_recipe_for_float16_trains_its_adapter_in_float32(tiny: Any, written: Written) -> None:
    text = f"model_name_or_path: {tiny('mistral')}\ndtype: float16\nuse_peft: true\nload_in_8bit: false\n"
    assert adapter_dtypes(loadkit.load(recipe=written(text))) == {torch.float32}


def test_axolotl_adds_the_tokens_that_arent_there(tiny: Any, written: Written) -> None:
    text = f"base_model: {tiny('mistral')}\nspecial_tokens: {{eos_token: <|end|>, pad_token: <|fill|>}}\n"
    loaded = loadkit.load(recipe=written(text))
    tokenizer = loaded.tokenizer
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|end|>", "<|fill|>")
    assert loaded.model.get_input_embeddings().weight.shape[0] >= len(tokenizer)
    again = loadkit.plan(
        recipe=written(f"base_model: {tiny('mistral')}\nspecial_tokens: {{eos_token: </s>}}\n")
    )
    assert again.tokens.additional == ()


def test_full_tuning_of_llama_factory(tiny: Any, written: Written) -> None:
    text = f"model_name_or_path: {tiny('gemma3')}\ndo_train: true\nfinetuning_type: full\nbf16: true\n"
    loaded = loadkit.load(recipe=written(text))
    for name, parameter in loaded.model.named_parameters():
        beside = "vision_tower" in name or "projector" in name
        assert parameter.requires_grad is not beside, name
        assert parameter.dtype == (torch.bfloat16 if beside else torch.float32), name
    half = loadkit.load(recipe=written(f"{text}pure_bf16: true\nfreeze_vision_tower: false\n"))
    trains = {n: p.dtype for n, p in half.model.named_parameters() if p.requires_grad}
    assert any("vision_tower" in name for name in trains)
    assert set(trains.values()) == {torch.bfloat16}


def test_llama_factory_to_run_and_to_merge(tiny: Any, written: Written, tmp_path: Path) -> None:
    base = tiny("mistral")
    trained = loadkit.load(base, "lora")
    trained.model.save_pretrained(tmp_path / "adapter")
    text = f"model_name_or_path: {base}\nadapter_name_or_path: {tmp_path / 'adapter'}\ntemplate: t\n"
    run = loadkit.load(recipe=written(f"{text}infer_backend: huggingface\n"))
    assert not run.model.training
    assert not any(p.requires_grad for p in run.model.parameters())
    merged = loadkit.load(recipe=written(f"{text}export_dir: out\n"))
    assert not hasattr(merged.model, "peft_config")


def test_axolotl_trains_what_it_is_told(tiny: Any, written: Written) -> None:
    text = f"base_model: {tiny('mistral')}\nunfrozen_parameters:\n- ^lm_head.weight$\n- model.layers.1.self_attn\n"
    loaded = loadkit.load(recipe=written(text))
    trains = {n for n, p in loaded.model.named_parameters() if p.requires_grad}
    assert "lm_head.weight" in trains
    assert {n for n in trains if n != "lm_head.weight"} == {
        n for n, _ in loaded.model.named_parameters() if ".layers.1.self_attn." in n
    }


def test_the_handbooks_new_adapter_over_an_adapter_repository(
    tiny: Any, written: Written, tmp_path: Path
) -> None:
    """Base, the adapter that is there, frozen, and a new one of the recipe's settings over it."""
    first = loadkit.load(tiny("mistral"), "lora", dtype="float32")
    for name, parameter in first.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    first.model.save_pretrained(tmp_path / "sft")
    text = f"model_name_or_path: {tmp_path / 'sft'}\ndtype: float32\nuse_peft: true\nlora_r: 3\nlora_target_modules: [q_proj]\n"
    loaded = loadkit.load(recipe=written(text))
    new = loaded.model.peft_config["new"]
    assert (new.r, set(new.target_modules)) == (3, {"q_proj"})
    trains = {n for n, p in loaded.model.named_parameters() if p.requires_grad}
    assert trains
    assert all(".new." in name and "q_proj" in name for name in trains)
    assert "stays on" in loaded.plan.why("adapter").because
    ids = torch.arange(8)[None]
    first.model.eval()
    loaded.model.eval()
    with torch.no_grad():
        before = first.model(ids).logits
        assert torch.allclose(loaded.model(ids).logits, before, atol=1e-5)  # a new LoRA changes nothing yet
        reference = loaded.reference()
        for name, parameter in loaded.model.named_parameters():
            if "lora_B.new" in name:
                torch.nn.init.normal_(parameter, std=0.05)
        changed = loaded.model(ids).logits
        assert not torch.allclose(changed, before, atol=1e-3)
        assert torch.allclose(reference(ids).logits, before, atol=1e-5)
        assert torch.allclose(loaded.model(ids).logits, changed)
        assert {n for n, p in loaded.model.named_parameters() if p.requires_grad} == trains
        with loaded.model.disable_adapter():  # both are off: the base alone
            assert not torch.allclose(loaded.model(ids).logits, before, atol=1e-3)


def test_named_tokens_are_the_tokenizers(tiny: Any, written: Written) -> None:
    text = f"base_model: {tiny('mistral')}\nspecial_tokens: {{bos_token: <begin>, unk_token: <what>}}\n"
    loaded = loadkit.load(recipe=written(text))
    assert (loaded.tokenizer.bos_token, loaded.tokenizer.unk_token) == ("<begin>", "<what>")
    assert loaded.model.config.bos_token_id == loaded.tokenizer.bos_token_id
    assert loaded.model.get_input_embeddings().weight.shape[0] >= len(loaded.tokenizer)


@pytest.mark.parametrize(
    ("text", "norms"),
    [
        ("base_model: BASE\nadapter: qlora\nload_in_4bit: true\nlora_target_linear: true\n", torch.bfloat16),
        ("model_name_or_path: BASE\ndo_train: true\nlora_rank: 4\nquantization_bit: 4\n", torch.bfloat16),
        ("model_name_or_path: BASE\ndo_train: true\nlora_rank: 4\nquantization_bit: 4\nupcast_layernorm: true\n", torch.float32),
        ("model: BASE\ntrain_dataset: d\npeft_config: {name: lora}\nquant_config: {name: bnb}\n", torch.bfloat16),
    ],
)  # fmt: skip
def test_norms_over_a_quantized_base(tiny: Any, written: Written, text: str, norms: torch.dtype) -> None:
    loaded = loadkit.load(recipe=written(text.replace("BASE", str(tiny("mistral")))))
    found = {p.dtype for n, p in loaded.model.named_parameters() if "norm" in n}
    assert found == {norms}


def test_llama_factorys_mixed_precision_leaves_the_base_as_it_is_stored(tiny: Any, written: Written) -> None:
    """bf16 and fp16 say what is computed in: autocast's dtype, and that of quantized layers."""
    base = tiny("mistral", dtype="float32")
    text = f"model_name_or_path: {base}\ndo_train: true\nlora_rank: 4\nbf16: true\n"
    loaded = loadkit.load(recipe=written(text))
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    quantized = loadkit.load(recipe=written(f"{text}quantization_bit: 4\n"))
    assert quantized.plan.dtype == "float32"
    assert quantized.plan.quantization is not None
    assert quantized.plan.quantization.options["bnb_4bit_compute_dtype"] == "bfloat16"


def test_axolotls_class(tiny: Any, written: Written) -> None:
    text = loadkit.load(recipe=written(f"base_model: {tiny('gemma3')}\nmodel_type: Gemma3ForCausalLM\n"))
    assert type(text.model).__name__ == "Gemma3ForCausalLM"
    other = loadkit.plan(recipe=written(f"base_model: {tiny('mistral')}\nmodel_type: LlamaForCausalLM\n"))
    told = next(w for w in other.warnings if w.code == "other-class")
    assert "LlamaForCausalLM was expected" in told.message
    with pytest.raises(loadkit.PlanError, match="other-class"):
        loadkit.plan(tiny("mistral"), model_class="LlamaForCausalLM")


def test_settings_of_peft_that_have_no_option(tiny: Any, written: Written) -> None:
    text = f"base_model: {tiny('mistral')}\nadapter: lora\nlora_r: 4\nlora_alpha: 8\nlora_target_modules: [q_proj, v_proj]\n"
    loaded = loadkit.load(
        recipe=written(f"{text}lora_rank_pattern: {{v_proj: 2}}\npeft_layers_to_transform: [1]\n")
    )
    ranks = {n: p.shape[0] for n, p in loaded.model.named_parameters() if ".lora_A" in n}
    assert all(".layers.1." in name for name in ranks)
    assert {n.split(".lora_A")[0].split(".")[-1]: r for n, r in ranks.items()} == {"q_proj": 4, "v_proj": 2}


def test_four_bits_with_adapter_lora(tiny: Any, written: Written) -> None:
    """axolotl quantizes to 4 bits with adapter: qlora alone."""
    text = f"base_model: {tiny('mistral')}\nadapter: lora\nload_in_4bit: true\nlora_r: 4\nlora_alpha: 8\nlora_target_linear: true\n"
    plan = loadkit.plan(recipe=written(text))
    assert plan.quantization is None
    assert any("qlora alone" in w.message for w in plan.warnings)


def linear_names(model: torch.nn.Module) -> set[str]:
    """What the stacks take for linear: whatever class is called so, by its last name; not the output head."""
    return {
        name.split(".")[-1]
        for name, module in model.named_modules()
        if "Linear" in type(module).__name__ and not name.endswith(("lm_head", "embed_out"))
    }


SWEPT = {
    "axolotl": "base_model: BASE\nadapter: lora\nlora_r: 4\nlora_alpha: 8\nlora_target_linear: true\n",
    "axolotl, 8 bits": "base_model: BASE\nadapter: lora\nload_in_8bit: true\nlora_r: 4\nlora_alpha: 8\nlora_target_linear: true\n",
    "axolotl, 4 bits": "base_model: BASE\nadapter: qlora\nload_in_4bit: true\nlora_r: 4\nlora_alpha: 8\nlora_target_linear: true\n",
    "axolotl, full": "base_model: BASE\nbf16: true\n",
    "LLaMA-Factory": "model_name_or_path: BASE\ndo_train: true\nlora_rank: 4\nlora_target: all\nbf16: true\n",
    "LLaMA-Factory, 4 bits": "model_name_or_path: BASE\ndo_train: true\nlora_rank: 4\nlora_target: all\nbf16: true\nquantization_bit: 4\n",
    "LLaMA-Factory, full": "model_name_or_path: BASE\ndo_train: true\nfinetuning_type: full\nbf16: true\n",
    "LLaMA-Factory v1": "model: BASE\ntrain_dataset: d\npeft_config: {name: lora, r: 4}\n",
    "LLaMA-Factory v1, full": "model: BASE\ntrain_dataset: d\n",
}  # fmt: skip
"""A recipe of each kind."""


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["gemma3", "llama", "llava", "mistral", "qwen2"])
@pytest.mark.parametrize("kind", SWEPT)
def test_recipes_over_architectures(tiny: Any, written: Written, arch: str, kind: str) -> None:
    loaded = loadkit.load(recipe=written(SWEPT[kind].replace("BASE", str(tiny(arch)))))
    trains = {n: p.dtype for n, p in loaded.model.named_parameters() if p.requires_grad}
    if "full" in kind:
        assert not adapted(loaded)
        assert set(trains.values()) == {torch.bfloat16 if kind == "axolotl, full" else torch.float32}
        beside = [n for n, _ in loaded.model.named_parameters() if "vision" in n or "projector" in n]
        assert set(beside).isdisjoint(trains) is (kind == "LLaMA-Factory, full" or not beside)
        return
    assert set(trains.values()) == {torch.float32}
    assert all("lora_" in name for name in trains)
    base = loadkit.load(tiny(arch)).model
    if kind in ("LLaMA-Factory", "LLaMA-Factory, 4 bits"):
        for part in ("vision_tower", "multi_modal_projector"):
            for name in [name for name, _ in base.named_modules()]:
                if name.endswith(part):
                    base.set_submodule(name, torch.nn.Identity())
    assert adapted(loaded) == linear_names(base)
