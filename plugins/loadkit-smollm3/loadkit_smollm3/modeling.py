"""SmolLM3's decoder and its language model. Loaded by loadkit when a plan names it; imports torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .configuration import SmolLM3Config, SmolLM3LoadkitConfig
from .layers import SmolLM3DecoderLayer, SmolLM3RMSNorm, SmolLM3RotaryAngles

__all__ = ["SmolLM3ForCausalLM", "SmolLM3LoadkitForCausalLM", "SmolLM3Model"]


class SmolLM3PreTrainedModel(PreTrainedModel):  # type: ignore[misc]
    """What the models have in common."""

    config_class = SmolLM3Config
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["SmolLM3DecoderLayer"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True


class SmolLM3Model(SmolLM3PreTrainedModel):
    """The decoder without a head."""

    def __init__(self, config: SmolLM3Config) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(
            SmolLM3DecoderLayer(config, index) for index in range(config.num_hidden_layers)
        )
        self.norm = SmolLM3RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_angles = SmolLM3RotaryAngles(config)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: Any = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the decoder.

        Parameters:
            input_ids: tokens, (batch, tokens); or give inputs_embeds.
            attention_mask: 1 for tokens and 0 for padding, or a mask that `generate` has prepared.
            position_ids: the position of every token; by default they are counted from where the cache ends.
            past_key_values: a cache of transformers'.
            inputs_embeds: embedded tokens, (batch, tokens, width).
            use_cache: whether to keep a cache; by default what the config says.
            output_hidden_states: whether to return each layer's input, and what the last norm gives.
            output_attentions: not to be had.

        Raises:
            ValueError: tokens and embeddings are both given or neither is; attention weights are asked for.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if output_attentions or (output_attentions is None and self.config.output_attentions):
            raise ValueError("loadkit-smollm3 doesn't return attention weights: leave output_attentions out")
        hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        keep = self.config.use_cache if use_cache is None else use_cache
        if self.training and any(layer.gradient_checkpointing for layer in self.layers):
            keep, past_key_values = False, None  # a layer that runs twice would write into the cache twice
        if keep and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            seen = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = (torch.arange(hidden.shape[1], device=hidden.device) + seen).unsqueeze(0)
        if isinstance(attention_mask, dict):
            mask = attention_mask["full_attention"]
        else:
            mask = create_causal_mask(
                config=self.config,
                inputs_embeds=hidden,
                attention_mask=attention_mask,
                past_key_values=past_key_values,
                position_ids=position_ids,
            )
        angles = self.rotary_angles(hidden, position_ids)
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        states = []
        for layer in self.layers:
            states.append(hidden)
            # By position: reentrant checkpointing follows gradients of positional arguments only.
            hidden = layer(hidden, angles, mask, past_key_values, position_ids=position_ids, **kwargs)
        hidden = self.norm(hidden)
        return BaseModelOutputWithPast(
            last_hidden_state=hidden,
            past_key_values=past_key_values if keep else None,
            hidden_states=(*states, hidden) if wanted else None,
        )


class SmolLM3ForCausalLM(SmolLM3PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """The decoder with its output head. It bears the name that the checkpoints' config.json has."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: SmolLM3Config) -> None:
        super().__init__(config)
        self.model = SmolLM3Model(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: Any = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the decoder and score every token of the vocabulary.

        Parameters:
            labels: the tokens to predict, (batch, tokens), -100 where none counts; the loss shifts them.
            logits_to_keep: score the last so many positions, or those of these indices; 0 for all.
            return_dict: False for a plain tuple.

        The other parameters are `SmolLM3Model`'s.
        """
        ran = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(ran.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs
            )
        given = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=ran.past_key_values,
            hidden_states=ran.hidden_states,
        )
        as_tuple = return_dict is False or (return_dict is None and self.config.return_dict is False)
        return given.to_tuple() if as_tuple else given


class SmolLM3LoadkitForCausalLM(SmolLM3ForCausalLM):
    """The same model under the model type that only this plugin knows."""

    config_class = SmolLM3LoadkitConfig
