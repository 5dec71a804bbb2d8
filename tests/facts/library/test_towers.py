"""Towers, read off the source: of files in several spellings, of classes that nobody knows."""

from __future__ import annotations

import pytest

from loadkit import ModelClass
from loadkit.facts.library.index import read_library
from loadkit.facts.library.towers import Towers, read_towers, tower_keys


def found(model_type: str, model_class: str, **more: str) -> Towers:
    model = ModelClass(task="image-text-to-text", auto_class="", model_class=model_class, **more)  # type: ignore[arg-type]
    return read_towers(read_library({"model_type": model_type}), {"model_type": model_type}, model)


@pytest.mark.parametrize(
    ("model_type", "model_class", "inside", "beside"),
    [
        (
            "llava",
            "LlavaForConditionalGeneration",
            ("model.vision_tower.encoder.layers.0.mlp.fc1", "vision_tower.vision_model.encoder.layers.0.mlp.fc1"),
            ("model.language_model.layers.0.mlp.up_proj", "language_model.model.layers.0.mlp.up_proj", "multi_modal_projector.linear_1"),
        ),
        ("qwen2_vl", "Qwen2VLForConditionalGeneration", ("visual.blocks.3.attn.qkv",), ("model.layers.3.self_attn.q_proj", "lm_head")),
        (
            "granite4_vision",
            "Granite4VisionForConditionalGeneration",
            ("model.layerwise_projectors.3.qformer.encoder.layer.0.attention.attention.query",),
            ("model.layerwise_projectors.3.out_linear", "model.layerwise_projectors.3"),
        ),
        ("vision-encoder-decoder", "VisionEncoderDecoderModel", ("encoder.layers.0.mlp.fc1",), ("decoder.bert.encoder.layer.0.output.dense",)),
        ("git", "GitForCausalLM", ("git.image_encoder.encoder.layers.0.mlp.fc1",), ("git.visual_projection.visual_projection.0",)),
        ("chameleon", "ChameleonForConditionalGeneration", (), ("model.vqmodel.encoder.conv_in",)),
        ("mistral", "MistralForCausalLM", (), ("model.image_layers.0.mlp.up_proj",)),
    ],
)  # fmt: skip
def test_where_the_towers_are(model_type: str, model_class: str, inside: tuple[str, ...], beside: tuple[str, ...]) -> None:  # fmt: skip
    towers = found(model_type, model_class)
    assert [path for path in inside if not towers.holds(path)] == []
    assert [path for path in beside if towers.holds(path)] == []


def test_of_the_text_half_there_are_none() -> None:
    assert found("gemma3", "Gemma3ForCausalLM", config_key="text_config") == Towers()


def test_without_source_names_tell() -> None:
    towers = found("gemma3", "modeling_wren.WrenForConditionalGeneration", implementation="remote code")
    assert towers.holds("model.vision_tower.blocks.0.qkv")
    assert towers.holds("vit.blocks.0.qkv")
    assert not towers.holds("model.vision_projector.linear")
    assert not towers.holds("model.layers.0.mlp.up_proj")


def test_the_keys() -> None:
    assert tower_keys(["text_config", "vision_config", "qformer_config"], "text_config") == {
        "vision_config",
        "qformer_config",
    }
    assert tower_keys(["vlm_config", "vision_config"], "") == {"vision_config"}


def test_what_a_constructor_hands_on() -> None:
    def given(model_type: str, class_name: str) -> dict[str, str]:
        return read_library({"model_type": model_type}).families[model_type].modules[class_name].given

    llava = {"config": "", "vision_tower": "vision_config", "language_model": "text_config"}
    assert given("llava", "LlavaModel") == llava
    both = given("vision-encoder-decoder", "VisionEncoderDecoderModel")
    assert (both["encoder"], both["decoder"]) == ("encoder", "decoder")  # through local names, in a branch
    assert given("deepseek_vl_hybrid", "DeepseekVLSamVisionNeck") == {"config": ""}
    assert "k_proj" not in given("idefics", "IdeficsAttention")  # its size is a field of a sub-config
    assert given("mistral", "MistralModel") == {}  # without sub-configs there is nothing to tell


def test_a_class_of_another_folder_brings_its_modules() -> None:
    modules = read_library({"model_type": "glmga"}).families["glmga"].modules
    assert "Glm46VModel" in modules
