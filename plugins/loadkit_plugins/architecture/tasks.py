"""The tasks that loadkit knows, as data: what each is called in transformers. Not a plugin itself."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

__all__ = ["HEADS", "TASKS", "Task"]


class Task(msgspec.Struct, frozen=True):
    """A task: its Auto class, and whether `architectures` alone may choose it."""

    auto_class: str
    inferred: bool = True


TASKS: Mapping[str, Task] = {
    "causal-lm": Task("AutoModelForCausalLM"),
    "image-text-to-text": Task("AutoModelForImageTextToText"),
    "seq2seq-lm": Task("AutoModelForSeq2SeqLM"),
    "sequence-classification": Task("AutoModelForSequenceClassification"),
    "token-classification": Task("AutoModelForTokenClassification"),
}
"""In the order in which they are tried where a checkpoint's `architectures` fits several."""

HEADS: Mapping[str, str] = {"SEQ_CLS": "sequence-classification", "TOKEN_CLS": "token-classification"}
"""PEFT's names of the tasks whose head an adapter brings."""
