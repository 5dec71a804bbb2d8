"""Tied weights: which stay one tensor after the merge, and which come apart."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from loadkit.errors import Problem
from loadkit.merging.moves import Move
from loadkit.merging.problems import merge_problem

__all__ = ["Ties", "still_tied", "untie"]


class Ties(NamedTuple):
    """What becomes of a model's tied tensors.

    Parameters:
        partner: each of them to the one that it is tied to.
        apart: those that get a tensor of their own, as the adapter moves only one of a pair, or both
            differently.
        moves: the adapter's moves, with those that one of a pair shares with the other.
    """

    partner: dict[str, str]
    apart: tuple[str, ...]
    moves: dict[str, Move]


def untie(bare: Any, moves: Mapping[str, Move], adapter: str) -> Ties:
    """Work out which pairs come apart, from who moves them."""
    pairs: dict[str, str] = dict(getattr(bare, "all_tied_weights_keys", None) or {})
    found, apart = dict(moves), []
    for target, source in pairs.items():
        one, other = found.get(target), found.get(source)
        if one is None and other is None:
            continue
        alone = one or other
        if alone is not None and (one is None or other is None) and _in_place(alone):
            found[target] = found[source] = alone  # the file had it once, for both
        elif one is None or other is None or not _same(one, other, adapter):
            apart.append(target)
    return Ties(pairs | {source: target for target, source in pairs.items()}, tuple(apart), found)


def still_tied(bare: Any, rebuilt: Callable[[], Any], ties: Ties, source: str) -> Problem | None:
    """Why a model's tied weights can't come apart; None where they can, or needn't.

    Parameters:
        rebuilt: gives a model of the class whose config says that nothing is tied; None where that would
            change more.
        source: the adapter that was asked for.
    """
    if not ties.apart:
        return None
    model = rebuilt()
    other = dict(getattr(model, "all_tied_weights_keys", None) or {})
    reads = model is None or "tie_word_embeddings" in inspect.getsource(type(bare).forward)
    if not reads and not any(target in other for target in ties.apart):
        return None
    why = "computes otherwise where they aren't" if reads else "has no setting that keeps them apart"
    return merge_problem(
        "merge-tied",
        f"{source!r} moves one of {ties.apart[0]} and {ties.partner[ties.apart[0]]}, which are one tensor in the base, and {type(bare).__name__} {why}",
        "train an adapter that leaves both alone, or moves both as one (PEFT's ensure_weight_tying=True)",
    )


def _in_place(move: Move) -> bool:
    """Whether the adapter's file brought the base's own tensor anew, which is one tensor in training too."""
    return move.how == "replaced" and move.wrapper is None


def _same(one: Move, other: Move, adapter: str) -> bool:
    """Whether both come to the same values."""
    import torch

    if one.how != other.how:
        return False
    if one.how == "replaced":
        return one.value is other.value or torch.equal(one.value, other.value)
    if (one.value is None) != (other.value is None):
        return False
    if one.value is not None and not torch.equal(one.value, other.value):
        return False
    tied = getattr(one.wrapper, "tied_adapter", None), getattr(other.wrapper, "tied_adapter", None)
    if tied[0] is other.wrapper or tied[1] is one.wrapper:
        return True
    return _same_matrices(one.wrapper, other.wrapper, adapter) or _same_matrices(
        other.wrapper, one.wrapper, adapter
    )


def _same_matrices(head: Any, embedding: Any, adapter: str) -> bool:
    """Whether a linear layer's LoRA is an embedding's, turned over."""
    import torch

    if adapter not in getattr(embedding, "lora_embedding_A", ()) or adapter not in getattr(
        head, "lora_A", ()
    ):
        return False
    return (
        head.scaling[adapter] == embedding.scaling[adapter]
        and not (adapter in head.lora_variant or adapter in embedding.lora_variant)
        and torch.equal(head.lora_A[adapter].weight, embedding.lora_embedding_B[adapter].T)
        and torch.equal(head.lora_B[adapter].weight, embedding.lora_embedding_A[adapter].T)
    )
