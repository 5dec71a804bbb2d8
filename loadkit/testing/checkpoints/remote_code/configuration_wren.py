"""The configuration of Wren, a tiny decoder that exists to be loaded as a checkpoint's own code."""

from transformers import PreTrainedConfig


class WrenConfig(PreTrainedConfig):  # type: ignore[misc]
    """What a Wren model is made of; the sizes are those of its smallest checkpoint."""

    model_type = "wren"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012

    vocab_size: int = 512
    hidden_size: int = 64
    intermediate_size: int = 128
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    max_position_embeddings: int = 256
    initializer_range: float = 0.02
    use_cache: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | None = 2
    tie_word_embeddings: bool = False
