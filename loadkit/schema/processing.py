"""How text reaches the model: tokenizer or processor, special tokens, vocabulary."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

__all__ = ["Processing", "Tokens", "Vocabulary"]


class Processing(msgspec.Struct, frozen=True, kw_only=True):
    """The tokenizer or processor that goes with the model.

    Parameters:
        kind: which Auto class loads it; "none" for a checkpoint without one.
        source: where it is loaded from: a folder or a repository id.
        revision: the commit of that repository; "" for a folder.
        processing_class: "module:Class" where a plugin registered one.
        chat_template: a template to set; None keeps its own.
        template_origin: a file, a checkpoint, or a plugin's architecture; "" where it was given as text.
        padding_side: "left" or "right"; None keeps its own.
        options: further keyword arguments of its `from_pretrained`.
    """

    kind: Literal["tokenizer", "processor", "none"]
    source: str = ""
    revision: str = ""
    processing_class: str = ""
    chat_template: str | None = None
    template_origin: str = ""
    padding_side: Literal["left", "right"] | None = None
    options: dict[str, Any] = {}


class Tokens(msgspec.Struct, frozen=True, kw_only=True):
    """The special tokens, and what they ask of the embeddings.

    Parameters:
        eos_token: the token that ends a text; None keeps the tokenizer's own.
        pad_token: the token that fills up a batch; None keeps the tokenizer's own.
        bos_token: the token that begins a text; None keeps the tokenizer's own.
        unk_token: the token for what has none; None keeps the tokenizer's own.
        additional: special tokens to add where the vocabulary lacks them, those above among them.
        pad_to_multiple_of: embedding rows become a multiple of it when tokens are added; None for no padding.
        vocabulary_to_multiple_of: there are at least as many embedding rows as tokens, rounded up to a
            multiple of it, whether tokens are added or not; None for no rounding.
    """

    eos_token: str | None = None
    pad_token: str | None = None
    bos_token: str | None = None
    unk_token: str | None = None
    additional: tuple[str, ...] = ()
    pad_to_multiple_of: int | None = None
    vocabulary_to_multiple_of: int | None = None


class Vocabulary(msgspec.Struct, frozen=True, kw_only=True):
    """What a loaded tokenizer's vocabulary asks of the model.

    Parameters:
        size: one more than its highest id.
        new_tokens: the tokens that loadkit added, to their ids.
        special_ids: "bos_token_id", "eos_token_id", "pad_token_id" to the id; None where there is none.
        rows: rows that the embeddings must have at least, for an adapter saved with them; 0 for no demand.
    """

    size: int
    new_tokens: dict[str, int] = {}
    special_ids: dict[str, int | None] = {}
    rows: int = 0
