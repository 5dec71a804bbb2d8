"""The tasks that loadkit knows, and what a request and a checkpoint say of them."""

from __future__ import annotations

from collections.abc import Mapping

from loadkit import Context

__all__ = ["HEADS", "TASKS", "TEXT", "asked_task", "class_for", "model_type_of"]

TASKS: Mapping[str, str] = {
    "causal-lm": "AutoModelForCausalLM",
    "image-text-to-text": "AutoModelForImageTextToText",
    "seq2seq-lm": "AutoModelForSeq2SeqLM",
    "sequence-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
}
"""Task to Auto class, in the order in which they are tried where `architectures` fits several."""

HEADS: Mapping[str, str] = {"SEQ_CLS": "sequence-classification", "TOKEN_CLS": "token-classification"}
"""PEFT's names of the tasks whose head an adapter brings."""

TEXT = "text"
"""The task that means: the language model alone, of a vision-language checkpoint too."""


def asked_task(context: Context) -> str:
    """The task asked for; "" where nobody asked."""
    task: str = context.request.value("task", "")
    return "causal-lm" if task == TEXT else task


def model_type_of(context: Context) -> str:
    """The model type that transformers takes the checkpoint's config for."""
    return context.library.model_type_of(context.checkpoint.config)


def class_for(context: Context, task: str) -> str | None:
    """transformers' class for a task; None where it has none."""
    library, checkpoint = context.library, context.checkpoint
    return library.model_class(TASKS[task], model_type_of(context), checkpoint.architectures)
