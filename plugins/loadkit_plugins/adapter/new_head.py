"""The head of a classifier trains whole beside an adapter, whatever its class calls it."""

from __future__ import annotations

from typing import Any

from loadkit import Context, ModelClass

__all__ = ["train_head"]

KNOWN = ("classifier", "score")
"""The heads that PEFT 0.21 trains and saves itself, by the names of modules."""


def train_head(options: dict[str, Any], context: Context, architecture: ModelClass, peft_type: str) -> None:
    """Have a head of several modules train and be saved whole, and not be adapted as well.

    PEFT knows two names. A head that is called otherwise (T5's and BART's `classification_head`, DeBERTa's
    `pooler`) would stay at random values with factors over them, and be gone from the saved adapter.

    Parameters:
        options: the adapter's fields, changed.
    """
    heads = context.head_layers(architecture)
    if all(head in KNOWN and layers == (head,) for head, layers in heads.items()) and len(heads) < 2:
        return  # PEFT's own way serves
    if "modules_to_save" in context.peft_fields(peft_type):
        given = options.get("modules_to_save") or []
        more = [head for head in heads if head not in (*given, *KNOWN)]
        options |= {"modules_to_save": [*given, *more]} if more else {}
    left = options.get("exclude_modules") or []
    if isinstance(left, list) and "exclude_modules" in context.peft_fields(peft_type):
        layers = [layer for each in heads.values() for layer in each]
        options["exclude_modules"] = [*left, *(layer for layer in layers if layer not in left)]
