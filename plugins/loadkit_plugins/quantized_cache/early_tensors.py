"""The tensors that were written while the model was loading, and which of them it has in the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loadkit_plugins.quantized_cache.model_state import content, contiguous_bytes
from loadkit_plugins.quantized_cache.tensor_file import Place, TensorFile

__all__ = ["EarlyTensors"]


class EarlyTensors:
    """What was written early, told by where its values lay in memory: no tensor is kept alive for it.

    Where one's memory was used again, what was written is another's. Its checksum tells.

    Parameters:
        file: where to.
    """

    def __init__(self, file: TensorFile) -> None:
        self._file = file
        self._places: dict[tuple[int, int], Place] = {}
        """By the address of the first byte, and how many there are."""

    def write(self, tensor: Any) -> None:
        """Write a tensor, unless it was written already.

        Parameters:
            tensor: in one piece of main memory.

        Raises:
            OSError: it can't be written.
        """
        where = _where(tensor)
        if where not in self._places:
            self._places[where] = self._file.append(content(tensor))

    def places(self, held: Mapping[str, Any]) -> dict[str, Place]:
        """The places of the tensors that were written early, by their names.

        Parameters:
            held: the model's tensors.

        Returns:
            Nothing, where something was written that isn't among them: the file is to be made anew then.
        """
        names = {_where(tensor): name for name, tensor in held.items() if contiguous_bytes(tensor)}
        if not self._places.keys() <= names.keys():
            return {}
        return {names[where]: place for where, place in self._places.items()}


def _where(tensor: Any) -> tuple[int, int]:
    return tensor.data_ptr(), tensor.nbytes
