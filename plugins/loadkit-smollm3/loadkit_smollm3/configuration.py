"""The configuration of SmolLM3, with the field names that its checkpoints have."""

from typing import Any

from transformers import PreTrainedConfig

from .plugin import STATIC_ROPE


class SmolLM3Config(PreTrainedConfig):  # type: ignore[misc]
    """What a SmolLM3 decoder is made of; the defaults are those of the 3B model.

    Parameters:
        num_key_value_heads: heads of keys and values, each for a group of query heads; None for one each.
        rope_parameters: kind and base of the rotary embedding, as transformers 5 writes them.
        no_rope_layers: a number a layer: 0 where it has no rotary embedding, else 1; None for the interval.
        no_rope_layer_interval: every so many layers one goes without.
        layer_types: "full_attention" for every layer: there is no other here.

    Raises:
        ValueError: the fields don't fit each other, or ask for a window or another rotary embedding.
    """

    model_type = "smollm3"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012
    default_theta = 2_000_000.0

    vocab_size: int = 128_256
    hidden_size: int = 2048
    intermediate_size: int = 11_008
    num_hidden_layers: int = 36
    num_attention_heads: int = 16
    num_key_value_heads: int | None = 4
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 32_768
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    pad_token_id: int | None = 128_004
    bos_token_id: int | None = 128_000
    eos_token_id: int | list[int] | None = 128_001
    rope_parameters: dict[str, Any] | None = None
    use_sliding_window: bool = False
    sliding_window: int | None = None
    no_rope_layers: list[int] | None = None
    no_rope_layer_interval: int = 4
    layer_types: list[str] | None = None
    attention_bias: bool = False
    attention_dropout: float | int = 0.0
    mlp_bias: bool = False
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        layers = self.num_hidden_layers
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.no_rope_layers is None:
            every = self.no_rope_layer_interval
            self.no_rope_layers = [0 if number % every == 0 else 1 for number in range(1, layers + 1)]
        if self.layer_types is None:
            self.layer_types = ["full_attention"] * layers
        super().__post_init__(**kwargs)
        self._refuse_what_is_not_here()

    def _refuse_what_is_not_here(self) -> None:
        """Say at once what would otherwise compute something else than the checkpoint means."""
        wrong = []
        if self.num_attention_heads % (self.num_key_value_heads or 1):
            wrong.append(
                f"{self.num_attention_heads} query heads can't share {self.num_key_value_heads} key-value heads evenly"
            )
        if len(self.no_rope_layers or ()) < self.num_hidden_layers:
            wrong.append(
                f"no_rope_layers has {len(self.no_rope_layers or ())} entries for {self.num_hidden_layers} layers"
            )
        if (self.use_sliding_window and self.sliding_window) or "sliding_attention" in (
            self.layer_types or ()
        ):
            wrong.append("it asks for a sliding window, which these classes don't have")
        kind = (self.rope_parameters or {}).get("rope_type", "default")
        if kind not in STATIC_ROPE:
            wrong.append(f"its rotary embedding is {kind!r}, and these classes have {', '.join(STATIC_ROPE)}")
        if wrong:
            raise ValueError(f"loadkit-smollm3 can't build this model: {'; '.join(wrong)}")


class SmolLM3LoadkitConfig(SmolLM3Config):
    """The same under a model type that only this plugin knows, for checkpoints of its classes."""

    model_type = "smollm3_loadkit"
