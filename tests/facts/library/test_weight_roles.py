"""What a tensor is in the model, read off its name and transformers' source."""

from __future__ import annotations

import math

import pytest
from examples import GEMMA3, checkpoint

from loadkit import Checkpoint, ModelClass, Weight
from loadkit.facts.library.index import read_library
from loadkit.facts.library.weight_roles import read_weights
from loadkit.plugins import TensorHeader


def facts(model_type: str, shapes: dict[str, tuple[int, ...]], **config: object) -> Checkpoint:
    tensors = {
        name: TensorHeader("BF16", shape, 2 * math.prod(shape), "model.safetensors")
        for name, shape in shapes.items()
    }
    return checkpoint({"model_type": model_type, **config}, tensors=tensors)


def weights(found: Checkpoint, model_class: str, **more: object) -> dict[str, Weight]:
    model = ModelClass(task="causal-lm", auto_class="AutoModelForCausalLM", model_class=model_class, **more)  # type: ignore[arg-type]
    return {w.name: w for w in read_weights(found, read_library(found.config), model)}


@pytest.mark.parametrize(
    ("model_type", "model_class", "name", "shape", "kind"),
    [
        ("mistral", "MistralForCausalLM", "model.layers.3.self_attn.q_proj.weight", (64, 64), "linear"),
        ("mistral", "MistralForCausalLM", "model.layers.3.input_layernorm.weight", (64,), "norm"),
        ("mistral", "MistralForCausalLM", "model.embed_tokens.weight", (320, 64), "embedding"),
        ("mistral", "MistralForCausalLM", "lm_head.weight", (320, 64), "head"),
        ("qwen2", "Qwen2ForSequenceClassification", "score.weight", (2, 64), "head"),
        ("qwen2", "Qwen2ForCausalLM", "model.layers.0.self_attn.q_proj.bias", (64,), "linear"),
        ("falcon", "FalconForCausalLM", "transformer.h.0.mlp.dense_h_to_4h.weight", (256, 64), "linear subclass"),
        ("mixtral", "MixtralForCausalLM", "model.layers.0.block_sparse_moe.experts.7.w2.weight", (64, 128), "experts"),
        ("mixtral", "MixtralForCausalLM", "model.layers.0.block_sparse_moe.gate.weight", (8, 64), "other"),
        ("qwen3_moe", "Qwen3MoeForCausalLM", "model.layers.0.mlp.experts.0.up_proj.weight", (128, 64), "experts"),
        ("gpt_oss", "GptOssForCausalLM", "model.layers.0.mlp.experts.gate_up_proj", (4, 64, 256), "experts"),
        ("gemma3", "Gemma3ForConditionalGeneration", "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight", (128, 64), "linear"),
        ("gemma3", "Gemma3ForConditionalGeneration", "vision_tower.vision_model.embeddings.patch_embedding.weight", (64, 3, 14, 14), "other"),
    ],
)  # fmt: skip
def test_the_kinds(model_type: str, model_class: str, name: str, shape: tuple[int, ...], kind: str) -> None:
    config = {k: v for k, v in GEMMA3.items() if k != "model_type"} if model_type == "gemma3" else {}
    found = weights(facts(model_type, {name: shape}, tie_word_embeddings=False, **config), model_class)
    assert found[name].kind == kind


def test_gpt2_stores_inputs_first() -> None:
    name = "transformer.h.0.mlp.c_fc.weight"
    found = weights(facts("gpt2", {name: (64, 256)}), "GPT2LMHeadModel")[name]
    assert (found.kind, found.shape) == ("linear", (256, 64))


def test_a_head_counts_where_it_is_stored() -> None:
    """transformers 5 ties a stored head to the embedding only where the two are equal, and then no saved file
    has both."""
    both = {"model.embed_tokens.weight": (320, 64), "lm_head.weight": (320, 64)}
    assert set(weights(facts("qwen2", both, tie_word_embeddings=True), "Qwen2ForCausalLM")) == set(both)


def test_of_a_text_half_only_the_text_counts() -> None:
    shapes = {
        "language_model.model.layers.0.mlp.up_proj.weight": (128, 64),
        "vision_tower.encoder.layers.0.mlp.fc1.weight": (128, 64),
    }
    found = weights(
        facts("gemma3", shapes, **{k: v for k, v in GEMMA3.items() if k != "model_type"}),
        "Gemma3ForCausalLM",
        config_key="text_config",
        key_mapping={r"^language_model\.": ""},
    )
    assert set(found) == {"language_model.model.layers.0.mlp.up_proj.weight"}


def test_without_source_the_names_tell() -> None:
    shapes = {
        "model.layers.0.attention.q_proj.weight": (64, 64), "model.embed_tokens.weight": (320, 64), "model.norm.weight": (64,),
        "lm_head.weight": (320, 64), "model.layers.0.experts.2.up.weight": (128, 64), "model.conv.weight": (64, 3, 4),
    }  # fmt: skip
    found = weights(facts("wren", shapes), "modeling_wren.WrenForCausalLM", implementation="remote code")
    assert [w.kind for w in found.values()] == ["linear", "embedding", "norm", "head", "experts", "other"]


def test_weights_whose_values_the_model_uses_itself_are_known() -> None:
    """TRAPS 27, read off the methods' source: a packed weight is only good for a call of its layer."""

    def direct(model_type: str) -> set[str]:
        family = read_library({"model_type": model_type}).families[model_type]
        return {f"{name}.{member}" for name, module in family.modules.items() for member in module.direct}

    assert "LongcatFlashTopkRouter.classifier" in direct("longcat_flash")
    assert {"MambaMixer.dt_proj", "MambaMixer.x_proj"} <= direct("mamba")
    assert "Gemma3nTextAltUp.prediction_coefs" in direct("gemma3n_text")
    assert "Pix2StructVisionMlp.wo" in direct("pix2struct")  # casts to its dtype, which is uint8 then
    assert direct("mistral") == direct("llama") == direct("qwen2") == set()
