"""The parts of SmolLM3: norm, rotary angles, grouped-query attention, feed-forward, one layer.

Modules bear the names that the checkpoints' tensors have. The order of the arithmetic is the published
model's, so that results agree with transformers' own implementation to the last bit.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration import SmolLM3Config

Angles: TypeAlias = tuple[torch.Tensor, torch.Tensor]
"""Cosine and sine of every position's angles, each (batch, tokens, width of a head)."""


class SmolLM3RMSNorm(nn.Module):
    """Scale every vector to a root mean square of one, in float32, then by a weight for each entry."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        exact = hidden.float()
        scaled = exact * torch.rsqrt(exact.square().mean(dim=-1, keepdim=True) + self.eps)
        return self.weight * scaled.to(hidden.dtype)


class SmolLM3RotaryAngles(nn.Module):
    """The angles that positions turn queries and keys by.

    The frequencies follow from the config alone, so they are no buffer that loading would have to fill: they
    are computed on the CPU, for the same bits on every device, at first use.
    """

    def __init__(self, config: SmolLM3Config) -> None:
        super().__init__()
        self.config = config
        self.kept: dict[torch.device, tuple[torch.Tensor, float]] = {}

    def forward(self, like: torch.Tensor, position_ids: torch.Tensor) -> Angles:
        frequencies, scaling = self._frequencies(like.device)
        with torch.no_grad():
            half = position_ids.unsqueeze(-1).float() * frequencies
            whole = torch.cat((half, half), dim=-1)
            return (whole.cos() * scaling).to(like.dtype), (whole.sin() * scaling).to(like.dtype)

    def _frequencies(self, device: torch.device) -> tuple[torch.Tensor, float]:
        if device not in self.kept:
            cpu = torch.device("cpu")
            parameters = self.config.rope_parameters or {}
            kind = parameters["rope_type"]
            if kind == "default":
                width = self.config.head_dim or 0
                exponents = torch.arange(0, width, 2, dtype=torch.float32, device=cpu) / width
                found, scaling = 1.0 / (parameters["rope_theta"] ** exponents), 1.0
            else:
                found, scaling = ROPE_INIT_FUNCTIONS[kind](self.config, cpu)
            self.kept[device] = found.to(device), scaling
        return self.kept[device]


def turned(vectors: torch.Tensor, angles: Angles) -> torch.Tensor:
    """Turn every pair of entries (i, i + half the width) by its angle; (batch, heads, tokens, width)."""
    cosine, sine = (angle.unsqueeze(1) for angle in angles)
    first, second = vectors.chunk(2, dim=-1)
    return vectors * cosine + torch.cat((-second, first), dim=-1) * sine


def eager_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend in plain torch; (batch, heads, tokens, width) in, (batch, tokens, heads, width) out."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = torch.matmul(query, key.transpose(-1, -2)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class SmolLM3Attention(nn.Module):
    """Causal self-attention whose key-value heads each serve a group of query heads."""

    def __init__(self, config: SmolLM3Config, layer_idx: int) -> None:
        super().__init__()
        heads, shared, width = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        assert shared is not None
        assert width is not None
        assert config.no_rope_layers is not None
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = width
        self.scaling = width**-0.5
        self.turns = bool(config.no_rope_layers[layer_idx])
        # transformers' attention functions read these two off the module.
        self.is_causal = True
        self.num_key_value_groups = heads // shared
        self.q_proj = nn.Linear(config.hidden_size, heads * width, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, shared * width, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, shared * width, bias=config.attention_bias)
        self.o_proj = nn.Linear(heads * width, config.hidden_size, bias=config.attention_bias)

    def forward(
        self,
        hidden: torch.Tensor,
        angles: Angles,
        attention_mask: Any = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        batch, tokens, _ = hidden.shape
        query, key, value = (
            projection(hidden).view(batch, tokens, -1, self.head_dim).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.turns:
            query, key = turned(query, angles), turned(key, angles)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        attended, _ = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            scaling=self.scaling,
            dropout=self.config.attention_dropout if self.training else 0.0,
            **kwargs,
        )
        projected: torch.Tensor = self.o_proj(attended.reshape(batch, tokens, -1))
        return projected


class SmolLM3MLP(nn.Module):
    """The feed-forward part: one projection gates another."""

    def __init__(self, config: SmolLM3Config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        fed: torch.Tensor = self.down_proj(self.activation(self.gate_proj(hidden)) * self.up_proj(hidden))
        return fed


class SmolLM3DecoderLayer(GradientCheckpointingLayer):  # type: ignore[misc]
    """Attention and feed-forward, each over a normalized copy of the stream and added to it."""

    def __init__(self, config: SmolLM3Config, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = SmolLM3Attention(config, layer_idx)
        self.mlp = SmolLM3MLP(config)
        self.input_layernorm = SmolLM3RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = SmolLM3RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        hidden: torch.Tensor,
        angles: Angles,
        attention_mask: Any = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        attended: torch.Tensor = self.self_attn(
            self.input_layernorm(hidden), angles, attention_mask, past_key_values, **kwargs
        )
        hidden = hidden + attended
        fed: torch.Tensor = self.mlp(self.post_attention_layernorm(hidden))
        return hidden + fed
