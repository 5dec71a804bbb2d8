"""What more than one plugin knows of single model types."""

from __future__ import annotations

__all__ = ["EXTRA_ROWS", "OVER_A_CACHE"]

EXTRA_ROWS = {"mllama": 8, "mllama_text_model": 8, "moshi": 1}
"""Model types whose input embeddings have rows beyond `vocab_size` by design: the image token's, the start of
audio (transformers 5.23, modeling_mllama and modeling_moshi)."""

OVER_A_CACHE = ("pi0",)
"""Model types whose forward pass attends to a cache that it has just filled: without one it fails."""
