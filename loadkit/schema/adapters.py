"""The adapters that a plan attaches, and what becomes of them."""

from __future__ import annotations

from typing import Any

import msgspec

__all__ = ["Adapter", "Adapters"]


class Adapter(msgspec.Struct, frozen=True, kw_only=True):
    """A PEFT adapter: a new one by its options, or an existing one by its source.

    Parameters:
        name: the adapter's name in the model.
        peft_type: "LORA" or another of PEFT's types.
        options: fields of that type's PEFT config, as plain data.
        source: folder or repository of an existing adapter; "" for a new one.
        revision: its commit; "" for a folder.
        trainable: whether its parameters train.
        dtype: dtype of its parameters.
        exclude_vision: leave the towers of a multimodal model other than the text one alone.
        frozen_parts: parts of a multimodal model that it leaves alone too: "projector", "language-model".
        new_tokens: for a new one: train the embedding rows of added tokens, but for the pad token's.
        whole: tensors of the model that an existing adapter brings whole, such as a classifier's head.
        embedding_rows: rows of the embeddings that an existing adapter was saved with; 0 for no demand.
    """

    name: str = "default"
    peft_type: str = "LORA"
    options: dict[str, Any] = {}
    source: str = ""
    revision: str = ""
    trainable: bool = True
    dtype: str = "float32"
    exclude_vision: bool = True
    frozen_parts: tuple[str, ...] = ()
    new_tokens: bool = False
    embedding_rows: int = 0
    whole: tuple[str, ...] = ()


class Adapters(msgspec.Struct, frozen=True, kw_only=True):
    """The adapters of a model, and what becomes of them.

    Parameters:
        members: one or several, in the order in which they are attached.
        active: the name of the one that is on.
        beneath: the name of the existing one that stays on, frozen, beneath a new one; "" for none.
        merge: work the active one into the weights of the base, and return a bare model.
        dequantize: turn a quantized base back into floating point before merging.
    """

    members: tuple[Adapter, ...]
    active: str = "default"
    beneath: str = ""
    merge: bool = False
    dequantize: bool = False
