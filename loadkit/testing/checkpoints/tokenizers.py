"""A byte-level BPE tokenizer, really trained on the corpus, with a chat template of our own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loadkit.testing.checkpoints.corpus import sentences

__all__ = ["RESERVED_TOKENS", "SPECIAL_TOKENS", "VOCAB_SIZE", "chat_template", "make_tokenizer"]

VOCAB_SIZE = 512
"""Tokens of every tokenizer, special ones included; the size of every embedding."""

SPECIAL_TOKENS: Mapping[str, str] = {
    "pad_token": "<pad>",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
}
"""Role to token; their ids go from 0 to 3. Nothing is unknown to a byte-level tokenizer, but Qwen2's class,
if it finds no unknown token, adds one past the end of the embedding."""

RESERVED_TOKENS: tuple[str, ...] = ("<reserved_0>", "<reserved_1>")
"""Tokens that no text uses; their ids are 4 and 5."""


def chat_template(image_token: str = "") -> str:
    """The chat template, as Jinja text, for contents that are a string or a list of text and image parts.

    It marks the assistant's words as `generation`, for losses on the assistant's tokens only.

    Parameters:
        image_token: what stands in the text for an image; "" where the model sees none.
    """
    return (
        "{%- macro words(content) -%}"
        "{%- if content is string -%}{{ content }}"
        "{%- else -%}{%- for part in content -%}"
        "{%- if part['type'] == 'image' -%}" + image_token + "{%- else -%}{{ part['text'] }}{%- endif -%}"
        "{%- endfor -%}{%- endif -%}"
        "{%- endmacro -%}"
        "{{- bos_token -}}"
        "{%- for message in messages -%}"
        "{{- message['role'] + ': ' -}}"
        "{%- if message['role'] == 'assistant' -%}"
        "{%- generation -%}{{- words(message['content']) + eos_token -}}{%- endgeneration -%}"
        "{%- else -%}{{- words(message['content']) -}}{%- endif -%}"
        "{{- '\\n' -}}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- 'assistant: ' -}}{%- endif -%}"
    )


def make_tokenizer(more_special_tokens: Mapping[str, str] | None = None) -> Any:
    """Train the tokenizer; the same corpus always gives the same ids.

    It is a `TokenizersBackend`, transformers' general class for a tokenizer.json: the classes of model types
    (Gemma's, T5's and others') rebuild the pipeline as their own models have it, and lose the byte level.

    Parameters:
        more_special_tokens: role to token, such as "image_token" to "<image>"; their ids follow the reserved
            ones from 6 on. Each becomes an attribute of the tokenizer.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import Qwen2Tokenizer, TokenizersBackend

    more = dict(more_special_tokens or {})
    special = [*SPECIAL_TOKENS.values(), *RESERVED_TOKENS, *more.values()]
    tokenizer = Tokenizer(models.BPE())
    # Qwen2's class splits text its own way whatever tokenizer.json says; as all do, all have equal ids.
    qwen2 = Qwen2Tokenizer().backend_tokenizer
    tokenizer.normalizer, tokenizer.pre_tokenizer = qwen2.normalizer, qwen2.pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in special],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*sentences(), "user: ", "assistant: "], trainer)
    bos = SPECIAL_TOKENS["bos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B:1", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    made = TokenizersBackend(
        tokenizer_object=tokenizer,
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
        extra_special_tokens=more,
        **SPECIAL_TOKENS,
    )
    made.chat_template = chat_template(more.get("boi_token") or more.get("image_token", ""))
    return made
