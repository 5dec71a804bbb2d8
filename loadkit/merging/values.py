"""The values of the model's tensors, before the merge and after it, one layer in memory at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from loadkit.merging.arithmetic import merge_whole
from loadkit.merging.layout import Group, Layout
from loadkit.merging.moves import Move
from loadkit.merging.stored_files import StoredFiles
from loadkit.merging.ties import Ties

__all__ = ["MoreRows", "Values"]


class MoreRows(NamedTuple):
    """Rows of an embedding or a head that the files don't have, or have otherwise.

    Parameters:
        total: how many rows there are in all.
        rows: their numbers.
        values: theirs.
    """

    total: int
    rows: Any
    values: Any


class Values:
    """The model's tensors, by their names in the model.

    Parameters:
        files: the base's.
        layout: what they call the tensors.
        ties: who is tied, and every move.
        adapter: the adapter's name in the skeleton.
        more_rows: rows that the vocabulary asks for, by tensor.
    """

    def __init__(
        self,
        files: StoredFiles,
        layout: Layout,
        ties: Ties,
        adapter: str,
        more_rows: Mapping[str, MoreRows],
    ) -> None:
        self.files, self.layout, self.ties, self.adapter = files, layout, ties, adapter
        self.more_rows = dict(more_rows)
        self._layers: dict[Any, dict[str, Move]] = {}
        for move in ties.moves.values():
            if move.wrapper is not None:
                self._layers.setdefault(move.wrapper, {})[move.attribute] = move
        self._converted: tuple[Group | None, dict[str, Any]] = (None, {})
        self._merged: tuple[Any, dict[str, Any]] = (None, {})

    def base(self, target: str) -> Any:
        """A tensor before the merge; a view of the file wherever that has it as it is."""
        if target not in self.layout.groups:
            target = self.ties.partner[target]
        group = self.layout.groups[target]
        if group.converter is None:
            found = self.files[next(iter(group.stored))].tensor(next(iter(group.stored)))
        else:
            if self._converted[0] is not group:
                self._converted = (None, {})
                self._converted = (group, self.layout.to_model(group, self.files.tensors(group.stored)))
            found = self._converted[1][target]
        return found if target not in self.more_rows else _grown(found, self.more_rows[target])

    def final(self, target: str) -> Any:
        """A tensor after the merge: in float32 where it was merged, else in its own dtype."""
        move = self.ties.moves.get(target)
        if move is None:
            return self.base(target)
        if move.how == "replaced":
            return move.value
        if self._merged[0] is not move.wrapper or target not in self._merged[1]:
            self._merged = (None, {})
            own = self._layers[move.wrapper]
            made = merge_whole(own, self.adapter, {m.attribute: self.start(m) for m in own.values()})
            self._merged = (move.wrapper, {own[name].target: value for name, value in made.items()})
        return self._merged[1].pop(target)

    def start(self, move: Move) -> Any:
        """What a merge starts from: the base's tensor, or the one that the adapter brought in its place."""
        return self.base(move.target) if move.value is None else move.value

    def forget(self) -> None:
        """Let go of what was kept for a layer's other tensors."""
        self._converted, self._merged = (None, {}), (None, {})


def _grown(tensor: Any, more: MoreRows) -> Any:
    import torch

    grown = torch.empty((more.total, *tensor.shape[1:]), dtype=tensor.dtype)
    grown[: tensor.shape[0]] = tensor
    grown[more.rows] = more.values.to(tensor.dtype)
    return grown
