"""The checkpoints that can be made, as data.

Every `in_features` of a linear layer is a multiple of 64, since bitsandbytes' 4-bit dequantization on CPUs
with AVX-512 is wrong for other multiples of 16 (bitsandbytes 0.50.2, measured).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from loadkit.testing.checkpoints.tokenizers import VOCAB_SIZE

__all__ = ["ARCHITECTURES", "Recipe"]


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """How a checkpoint is made.

    Parameters:
        about: what it is good for, in a sentence.
        auto_class: the auto class that loads it, such as "AutoModelForCausalLM".
        config_class: its config's class, a name in `transformers` or "module:Class".
        model_class: its model's class, written the same way.
        config: what the config class is given; nested configs are dicts.
        special_tokens: role to token, for the tokenizer; their ids go from 6 on, in this order.
        processor_class: the processor's class in `transformers`; "" for a model that takes text only.
        processor: what the processor class is given beside tokenizer and image processor.
        image_processor_class: the image processor's class, one that works without torchvision.
        image_processor: what the image processor's class is given.
    """

    about: str
    auto_class: str
    config_class: str
    model_class: str
    config: dict[str, Any]
    special_tokens: dict[str, str] = {}
    processor_class: str = ""
    processor: dict[str, Any] = {}
    image_processor_class: str = ""
    image_processor: dict[str, Any] = {}


_TOKEN_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_TOKENS = {"vocab_size": VOCAB_SIZE, **_TOKEN_IDS}
_TOWER = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
_SIZES = {**_TOWER, "num_key_value_heads": 2, "max_position_embeddings": 256}
_DECODER = {**_TOKENS, **_SIZES, "tie_word_embeddings": False}
_GEMMA3_TEXT = {
    **_TOKENS,
    **_SIZES,
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "sliding_window": 32,
    "layer_types": ["sliding_attention", "full_attention"],
    "tie_word_embeddings": True,
}
_VISION = {**_TOWER, "image_size": 32, "patch_size": 8}


def _recipe(model_class: str, about: str, config: dict[str, Any]) -> Recipe:
    """The recipe of a text model whose class says family and task, and so config and auto class."""
    family, _, task = model_class.partition("For")
    return Recipe(
        about=about,
        auto_class=f"AutoModelFor{task}",
        config_class=f"{family}Config",
        model_class=model_class,
        config=config,
    )


ARCHITECTURES: Mapping[str, Recipe] = MappingProxyType(
    {
        "bert-sequence-classification": _recipe(
            "BertForSequenceClassification",
            "An encoder with a classification head of three labels.",
            {**_TOKENS, **_TOWER, "max_position_embeddings": 256, "num_labels": 3},
        ),
        "gemma3": Recipe(
            about="A vision-language model with a processor, whose config has no `use_cache` of its own.",
            auto_class="AutoModelForImageTextToText",
            config_class="Gemma3Config",
            model_class="Gemma3ForConditionalGeneration",
            config={
                "text_config": {"model_type": "gemma3_text", **_GEMMA3_TEXT},
                "vision_config": {"model_type": "siglip_vision_model", "vision_use_head": False, **_VISION},
                "mm_tokens_per_image": 4,
                "boi_token_index": 6,
                "eoi_token_index": 7,
                "image_token_index": 8,
                **_TOKEN_IDS,
            },
            special_tokens={
                "boi_token": "<start_of_image>",
                "eoi_token": "<end_of_image>",
                "image_token": "<image_soft_token>",
            },
            processor_class="Gemma3Processor",
            processor={"image_seq_length": 4},
            image_processor_class="Gemma3ImageProcessorPil",
            image_processor={"size": {"height": 32, "width": 32}, "do_pan_and_scan": False},
        ),
        "gemma3-text": Recipe(
            about="A decoder with tied embeddings that mixes sliding-window and full attention.",
            auto_class="AutoModelForCausalLM",
            config_class="Gemma3TextConfig",
            model_class="Gemma3ForCausalLM",
            config=_GEMMA3_TEXT,
        ),
        "gpt-oss": _recipe(
            "GptOssForCausalLM",
            "A mixture whose stacks of experts are transposed, interleaved and biased, with attention sinks.",
            {
                **_DECODER,
                "head_dim": 16,
                "num_local_experts": 4,
                "num_experts_per_tok": 2,
                "sliding_window": 32,
                "layer_types": ["sliding_attention", "full_attention"],
            },
        ),
        "gpt2": Recipe(
            about="A decoder made of Conv1D modules rather than linear layers, with tied embeddings.",
            auto_class="AutoModelForCausalLM",
            config_class="GPT2Config",
            model_class="GPT2LMHeadModel",
            config={**_TOKENS, "n_embd": 64, "n_inner": 128, "n_layer": 2, "n_head": 4, "n_positions": 256},
        ),
        "llama": _recipe("LlamaForCausalLM", "The plainest decoder.", _DECODER),
        "llava": Recipe(
            about="A vision-language model with a processor: a CLIP vision tower before a llama decoder.",
            auto_class="AutoModelForImageTextToText",
            config_class="LlavaConfig",
            model_class="LlavaForConditionalGeneration",
            config={
                "text_config": {"model_type": "llama", **_DECODER},
                "vision_config": {"model_type": "clip_vision_model", "projection_dim": 64, **_VISION},
                "vision_feature_layer": -2,
                "vision_feature_select_strategy": "default",
                "image_token_index": 6,
                "image_seq_length": 16,
                "pad_token_id": 0,
                "tie_word_embeddings": False,
            },
            special_tokens={"image_token": "<image>"},
            processor_class="LlavaProcessor",
            processor={
                "patch_size": 8,
                "vision_feature_select_strategy": "default",
                "num_additional_image_tokens": 1,
            },
            image_processor_class="CLIPImageProcessorPil",
            image_processor={"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}},
        ),
        "mistral": _recipe(
            "MistralForCausalLM",
            "A decoder with grouped-query attention; the default.",
            {**_DECODER, "sliding_window": None},
        ),
        "mixtral": _recipe(
            "MixtralForCausalLM",
            "A mixture of four experts, whose weights transformers fuses into 3-D tensors.",
            {**_DECODER, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
        ),
        "qwen2": _recipe(
            "Qwen2ForCausalLM",
            "A decoder with biases in its attention and embeddings that aren't tied.",
            _DECODER,
        ),
        "qwen2-sequence-classification": _recipe(
            "Qwen2ForSequenceClassification",
            "A decoder with a classification head of three labels.",
            {**_DECODER, "num_labels": 3},
        ),
        "qwen2-tied": _recipe(
            "Qwen2ForCausalLM",
            "The same decoder with the output tied to the input embeddings.",
            {**_DECODER, "tie_word_embeddings": True},
        ),
        "qwen3-moe": _recipe(
            "Qwen3MoeForCausalLM",
            "A mixture whose first layer is dense and whose second has four experts.",
            {
                **_DECODER,
                "head_dim": 16,
                "moe_intermediate_size": 64,
                "num_experts": 4,
                "num_experts_per_tok": 2,
                "mlp_only_layers": [0],
            },
        ),
        "remote-code": Recipe(
            about="A decoder of a model type unknown to transformers, which brings its own code.",
            auto_class="AutoModelForCausalLM",
            config_class="loadkit.testing.checkpoints.remote_code.configuration_wren:WrenConfig",
            model_class="loadkit.testing.checkpoints.remote_code.modeling_wren:WrenForCausalLM",
            config={},
        ),
        "smollm3": _recipe(
            "SmolLM3ForCausalLM",
            "A decoder that leaves the rotary embedding out of every other layer.",
            {**_DECODER, "tie_word_embeddings": True, "no_rope_layer_interval": 2},
        ),
        "t5": Recipe(
            about="An encoder and a decoder.",
            auto_class="AutoModelForSeq2SeqLM",
            config_class="T5Config",
            model_class="T5ForConditionalGeneration",
            config={
                "vocab_size": VOCAB_SIZE,
                "pad_token_id": 0,
                "eos_token_id": 2,
                "decoder_start_token_id": 0,
                "d_model": 64,
                "d_kv": 16,
                "d_ff": 128,
                "num_layers": 2,
                "num_heads": 4,
            },
        ),
    }
)
"""Name to recipe, sorted by name."""
