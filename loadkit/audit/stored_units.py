"""Stacks whose matrices were quantized one by one, and what files have for each: the stack, or experts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from loadkit.audit.stored_names import stored_name
from loadkit.schema.quantized_weights import Opened, Unit

__all__ = ["StoredUnit", "stored_units"]

ROWS, COLUMNS = 4, 3
"""The size of the matrices by which transformers is asked what it makes of a stack: numbers instead of
weights, from which each piece tells what it is a piece of."""


class StoredUnit(NamedTuple):
    """A matrix of a stack, or the first rows of a part of one, as the files have them."""

    name: str
    unit: Unit
    rows: Any


class _Piece(NamedTuple):
    """Which matrix a tensor of the files belongs to, at which share of its rows it begins, and whether it
    lies the other way round."""

    unit: int
    start: float
    turned: bool


def stored_units(
    model: Any, name: str, parameter: Any, opened: Opened, files: Mapping[str, Any], values: int | None
) -> Iterator[StoredUnit]:
    """Every matrix of a quantized stack beside what the files have for it; nothing where they have nothing
    like it.

    Parameters:
        name, parameter: the stack.
        opened: what it consists of.
        files: a tensor's name to what is opened to read it: `get_slice(name)`.
        values: about how many values of the stack are read; None for all.
    """
    columns = opened.shape[-1]
    height = math.prod(opened.shape) // opened.units // columns
    rows = height if values is None else max(1, values // (opened.units * columns))
    made, numbers = _saved(model, name, opened.units)
    renamed = [
        each for each, tensor in made.items() if tensor.shape == numbers.shape and (tensor == numbers).all()
    ]
    whole = next((n for each in [name, *renamed] if (n := stored_name(model, each, files))), None)
    if whole is not None:
        stored = files[whole].get_slice(whole)
        if tuple(stored.get_shape()) == opened.shape:
            for index in range(opened.units):
                first = index * height
                read = stored[index, :rows] if len(opened.shape) > 2 else stored[first : first + rows]
                yield StoredUnit(f"{name}[{index}]", Unit(parameter, index, 0), read)
        return
    for piece_name, tensor in made.items():
        found, piece = stored_name(model, piece_name, files), _told(tensor)
        if found is None or piece is None:
            continue
        stored = files[found].get_slice(found)
        if len(stored.get_shape()) != 2:
            continue
        read = stored[:].T if piece.turned else stored[:rows]
        said = f"{name}[{piece.unit}], {found} in the files"
        yield StoredUnit(said, Unit(parameter, piece.unit, round(height * piece.start)), read)


def _saved(model: Any, name: str, units: int) -> tuple[dict[str, Any], Any]:
    """What transformers would make of the stack when it saves the model unquantized, by the files' names; and
    the numbers that it was asked with."""
    import torch
    from transformers.core_model_loading import revert_weight_conversion

    numbers = torch.arange(units * ROWS * COLUMNS).view(units, ROWS, COLUMNS)
    own = getattr(model, "_weight_conversions", None)
    try:
        model._weight_conversions = None  # those of the class: what is quantized has none of its own
        return revert_weight_conversion(model, {name: numbers}), numbers
    except Exception:  # an operation that needs its neighbours, or a class that isn't transformers' own
        return {}, numbers
    finally:
        model._weight_conversions = own


def _told(tensor: Any) -> _Piece | None:
    """What a piece is a piece of; None where its rows aren't neighbours in one matrix."""
    import torch

    if tensor.ndim != 2:
        return None
    turned = tensor.shape[1] != COLUMNS
    rows = tensor.T if turned else tensor
    first = int(rows[0, 0])
    if not torch.equal(rows.reshape(-1), torch.arange(first, first + rows.numel())) or first % COLUMNS:
        return None
    unit, rest = divmod(first, ROWS * COLUMNS)
    return _Piece(unit, rest / COLUMNS / ROWS, turned)
