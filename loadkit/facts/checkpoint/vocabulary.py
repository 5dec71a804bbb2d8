"""The whole vocabulary of a tokenizer on this machine, of which a plan reads the beginning alone."""

from __future__ import annotations

import os
from functools import lru_cache

import msgspec

from loadkit.facts.checkpoint.checkpoint import ProcessingFacts

__all__ = ["vocabulary_of"]


def vocabulary_of(facts: ProcessingFacts) -> frozenset[str] | None:
    """Every token of a folder's tokenizer.json; None for a repository, or a tokenizer of another kind."""
    if facts.commit or "tokenizer.json" not in facts.files:
        return None
    path = os.path.join(facts.location, "tokenizer.json")
    try:
        return _read(path, os.stat(path).st_mtime_ns)
    except OSError:
        return None


@lru_cache(maxsize=4)
def _read(path: str, changed: int) -> frozenset[str] | None:
    try:
        with open(path, "rb") as file:
            content = msgspec.json.decode(file.read())
    except msgspec.DecodeError:
        return None
    model = content.get("model") if isinstance(content, dict) else None
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, list):  # a unigram model's pairs of token and score
        vocabulary = [pair[0] for pair in vocabulary if isinstance(pair, list) and pair]
    if not isinstance(vocabulary, dict | list):
        return None
    added = [t.get("content") for t in content.get("added_tokens") or [] if isinstance(t, dict)]
    return frozenset(token for token in (*vocabulary, *added) if isinstance(token, str))
