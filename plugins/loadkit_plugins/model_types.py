"""What more than one plugin knows of single model types."""

from __future__ import annotations

__all__ = ["OVER_A_CACHE"]

OVER_A_CACHE = ("pi0",)
"""Model types whose forward pass attends to a cache that it has just filled: without one it fails."""
