"""The tensors that were written while the model was loading, and which of them it has in the end."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any, NamedTuple

from loadkit_plugins.quantized_cache.model_state import content, contiguous_bytes
from loadkit_plugins.quantized_cache.tensor_file import Place, TensorFile

__all__ = ["EarlyTensors"]


class _Written(NamedTuple):
    tensor: weakref.ref[Any]
    place: Place


class EarlyTensors:
    """What was written early. No tensor is kept alive: one that the model drops is gone, and what was written
    of it is of no use.

    Parameters:
        file: where to.
    """

    def __init__(self, file: TensorFile) -> None:
        self._file = file
        self._written: dict[tuple[int, int], _Written] = {}
        """By the address of the first byte, and how many there are."""
        self._spoilt = False
        """Whether something was written that the model has no more."""

    def write(self, reference: weakref.ref[Any]) -> None:
        """Write a tensor, unless it is gone, or was written already.

        Raises:
            OSError: it can't be written.
        """
        tensor = reference()
        if self._spoilt or tensor is None or not contiguous_bytes(tensor):
            return
        at = _where(tensor)
        if at not in self._written:
            self._written[at] = _Written(reference, self._file.append(content(tensor)))
        elif not _lies(self._written[at], at):
            self._spoilt = True

    def places(self, held: Mapping[str, Any]) -> dict[str, Place]:
        """The places of the tensors that were written early, by their names.

        Parameters:
            held: the model's tensors.

        Returns:
            Nothing, where something was written that isn't among them: the file is to be made anew then.
        """
        names = {_where(tensor): name for name, tensor in held.items() if contiguous_bytes(tensor)}
        places: dict[str, Place] = {}
        for at, written in self._written.items():
            if self._spoilt or at not in names or not _lies(written, at):
                return {}
            places[names[at]] = written.place
        return places


def _where(tensor: Any) -> tuple[int, int]:
    return tensor.data_ptr(), tensor.nbytes


def _lies(written: _Written, at: tuple[int, int]) -> bool:
    """Whether a tensor still is where it was when it was written."""
    tensor = written.tensor()
    return tensor is not None and contiguous_bytes(tensor) > 0 and _where(tensor) == at
