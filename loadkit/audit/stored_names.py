"""What a checkpoint's files call a tensor of the model, and in which pieces they have it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any, NamedTuple

from loadkit.audit.model_access import is_packed

__all__ = ["Stored", "as_stored", "stored_name"]


class Stored(NamedTuple):
    """A tensor as the files have it.

    Parameters:
        name: theirs; None where they have none like it.
        tensor: the model's values, in the files' layout.
        piece: whether it is made of the model's tensor, such as a single expert of a stack.
    """

    name: str | None
    tensor: Any
    piece: bool = False


def stored_name(model: Any, name: str, files: Mapping[str, Any]) -> str | None:
    """The name under which files have a tensor of the model as it is; None where they have no such name."""
    prefix = f"{model.base_model_prefix}."
    candidates = (name, name.removeprefix(prefix), f"{prefix}{name}")
    return next((candidate for candidate in candidates if candidate in files), None)


def as_stored(model: Any, name: str, parameter: Any, files: Mapping[str, Any]) -> Iterator[Stored]:
    """The pieces that files have of one tensor of the model, as transformers would save them."""
    if (found := stored_name(model, name, files)) is not None:
        yield Stored(found, parameter)
        return
    pieces = {} if _is_split(parameter) else _reverted(model, name, parameter, files)
    if is_packed(parameter):  # codes can be renamed, and neither split nor turned as weights are
        same = [tensor.data_ptr() == parameter.data_ptr() for tensor in pieces.values()]
        pieces = dict.fromkeys(pieces, parameter) if same == [True] else {}
    known = {stored: tensor for stored, tensor in pieces.items() if stored in files}
    if not known:
        yield Stored(None, parameter)
    for stored, tensor in known.items():
        yield Stored(stored, tensor, piece=len(pieces) > 1)


def _is_split(parameter: Any) -> bool:
    return hasattr(parameter, "ds_shape") or hasattr(parameter, "device_mesh")


def _reverted(model: Any, name: str, parameter: Any, files: Mapping[str, Any]) -> dict[str, Any]:
    """What transformers makes of one tensor when it saves the model; nothing where it can't of one alone.

    A model that was quantized keeps those of its conversions that still hold for all it has. What they make
    nothing of that the files know, such as a stack that stayed as it is beside packed ones, was read by its
    class's.
    """
    own = getattr(model, "_weight_conversions", None)
    made = _saved_by(model, own, name, parameter)
    if own is None or any(stored in files for stored in made):
        return made
    return _saved_by(model, None, name, parameter)


def _saved_by(model: Any, conversions: Any, name: str, parameter: Any) -> dict[str, Any]:
    """What these conversions, or those of the class, make of a tensor when they are reversed.

    transformers 5.23 changes a conversion's patterns in place while it reverses it (`WeightTransform.copy`
    hands its own lists on), so it is given copies.
    """
    from transformers.core_model_loading import revert_weight_conversion

    own = getattr(model, "_weight_conversions", None)
    try:
        if hasattr(model, "_weight_conversions"):
            model._weight_conversions = deepcopy(conversions)
        made: dict[str, Any] = revert_weight_conversion(model, {name: parameter.detach()})
    except Exception:  # an operation that needs its neighbours, or a model class that isn't transformers' own
        return {}
    finally:
        if hasattr(model, "_weight_conversions"):
            model._weight_conversions = own
    return made
