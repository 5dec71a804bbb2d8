"""Tiny configs of every model type, made from its own config class by rules on the fields' names.

A field that no rule names keeps its default, so that the features of a family (its layer pattern, its
experts, its towers) stay.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

__all__ = ["tiny_config"]

WIDTH, HEADS, KEY_VALUE_HEADS, HEAD_DIM, LAYERS, EXPERTS, VOCABULARY = 64, 4, 2, 16, 2, 4, 320

RULES: tuple[tuple[str, Any], ...] = (
    (r"vocab_size|decoder_vocab_size|unpadded_vocab_size|vocab_size_per_layer_input|audio_vocab_size", VOCABULARY),
    (r"num_hidden_layers|n_layers?|num_layers|layers|depth|(en|de)coder_layers|num_(en|de)coder_layers", LAYERS),
    (r"num_attention_heads|n_heads?|num_heads|attention_heads|(en|de)coder_attention_heads|swa_num_attention_heads", HEADS),
    (r"num_key_value_heads|num_kv_heads|swa_num_key_value_heads|num_global_key_value_heads", KEY_VALUE_HEADS),
    (r"linear_num_key_heads|linear_num_heads", KEY_VALUE_HEADS),
    (r"linear_num_value_heads", HEADS),
    (r"head_dim|swa_head_dim|global_head_dim|d_kv|v_head_dim|qk_nope_head_dim|linear_(key|value)_head_dim|linear_head_dim|attention_head_dim|kv_channels", HEAD_DIM),
    (r"qk_rope_head_dim|rotary_dim", HEAD_DIM // 2),
    (r"index_n_heads", KEY_VALUE_HEADS),
    (r"index_head_dim", HEAD_DIM),
    (r"index_topk", 8),
    (r"hidden_size|d_model|n_embd|embed_dim|hidden_dim|embedding_size|word_embed_proj_dim|dim|out_hidden_size|output_dim|projection_dim|projector_hidden_size|text_hidden_size|vision_hidden_size|encoder_hidden_size|attention_hidden_size|image_text_hidden_size|hidden_size_global|patch_embed_hidden_size|adapter_out_dim|ple_embed_dim|moe_hidden_size|vision_output_dim", WIDTH),
    (r"(moe_|shared_|shared_expert_|dense_|centroid_|projection_|alignment_|moe_shared_expert_|shared_experts_)?intermediate_size|intermediate_size_mlp|(en|de)coder_ffn_dim|ffn_dim|d_ff|ffn_hidden_size|expert_ffn_hidden_size|mlp_dim|n_inner|dim_ff|dff", 2 * WIDTH),
    (r"n_routed_experts|num_experts|num_local_experts|moe_num_experts", EXPERTS),
    (r"num_experts_per_tok(en)?|moe_topk|moe_k|moe_top_k", 2),
    (r"n_group|topk_group|num_expert_group|n_groups", 1),
    (r"(kv|q|o)_lora_rank", WIDTH),
    (r"max_position_embeddings|n_positions|max_seq_len|n_ctx|model_max_length|original_max_position_embeddings", 256),
    (r"image_size", 28),
    (r"patch_size", 14),
    (r"num_position_embeddings", 16),
    (r"hidden_size_per_layer_input", WIDTH),
    (r"sliding_window(_size)?|attention_chunk_size|sliding_window_pattern", 4),
    (r"mamba_n_heads|mamba_num_heads", 8),
    (r"mamba_d_head|mamba_head_dim", HEAD_DIM),
    (r"(mamba_)?d_state|ssm_state_size|state_size|mamba_d_state", HEAD_DIM),
    (r"(mamba_)?chunk_size", 16),
)  # fmt: skip
"""Field names to values, the first match counts."""

WHERE_NONE = {"head_dim": HEAD_DIM, "num_key_value_heads": KEY_VALUE_HEADS, "n_routed_experts": EXPERTS}
"""Fields whose default is None where a published config has a number."""

OWN: Mapping[str, Mapping[str, Any]] = msgspec.toml.decode(
    (Path(__file__).parent / "own_sizes.toml").read_bytes()
)
"""What single model types need instead: "text_config.hidden_size" reaches into sub-configs."""


def tiny_config(model_type: str) -> Any:
    """A small config of a model type, all its sub-configs included."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config_class = CONFIG_MAPPING[model_type]
    return _tiny(config_class, _nest(OWN.get(model_type, {})))


def _tiny(config_class: type, own: Mapping[str, Any], default: Any = None) -> Any:
    default = config_class() if default is None else default
    given = default.to_dict()
    fields = {name: small for name, value in given.items() if (small := _small(name, value)) is not None}
    if isinstance(kinds := given.get("layer_types"), list):
        fields["layer_types"] = [*dict.fromkeys(kinds)] if len(set(kinds)) > 1 else kinds[:1] * LAYERS
        fields["num_hidden_layers"] = len(fields["layer_types"])
    if given.get("kv_lora_rank"):  # latent attention
        fields |= {"num_key_value_heads": HEADS} if "num_key_value_heads" in fields else {}
        fields |= (
            {"head_dim": HEAD_DIM // 2} if given.get("head_dim") == given.get("qk_rope_head_dim") else {}
        )
    for name in getattr(config_class, "sub_configs", {}):
        part = getattr(default, name, None)
        if part is not None and hasattr(part, "to_dict"):
            below = own.get(name)
            fields[name] = _tiny(type(part), below if isinstance(below, Mapping) else {}, part).to_dict()
    return config_class(
        **fields | {n: v for n, v in own.items() if n not in getattr(config_class, "sub_configs", {})}
    )


def _small(name: str, value: Any) -> Any:
    """The small value of a field; None leaves it alone."""
    if name in WHERE_NONE and value is None:
        return WHERE_NONE[name]
    if name == "rope_parameters" and isinstance(value, dict) and "mrope_section" in value:
        return {**value, "mrope_section": [2, 3, 3]}
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        return None
    if name.endswith(("_token_id", "_token_index")) and value >= VOCABULARY:
        return VOCABULARY - 1 - sum(map(ord, name)) % 40
    small = next((size for pattern, size in RULES if re.fullmatch(pattern, name)), None)
    return min(small, value) if name.endswith("layers") and small else small


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, name = path.split(".")
        home = found
        for parent in parents:
            home = home.setdefault(parent, {})
        home[name] = value
    return found
