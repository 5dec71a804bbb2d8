"""Where a model's input and output embeddings are. Not a plugin itself."""

from __future__ import annotations

from typing import Any

__all__ = ["input_embeddings", "output_embeddings"]


def input_embeddings(model: Any) -> Any:
    """The module that embeds token ids; None where the class doesn't tell (transformers raises for pp_formulanet, say)."""
    try:
        return model.get_input_embeddings()
    except NotImplementedError:
        return None


def output_embeddings(model: Any) -> Any:
    """The output head; None where the class has none or doesn't tell."""
    try:
        return model.get_output_embeddings()
    except NotImplementedError:
        return None
