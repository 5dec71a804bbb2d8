"""What the files call the model's tensors, in which pieces, and the way there and back: transformers' own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any, NamedTuple

from loadkit.facts.checkpoint.checkpoint import TensorHeader

__all__ = ["Group", "Layout", "read_layout"]


class Group(NamedTuple):
    """Tensors of the files that belong together, and the tensors of the model that are made of them.

    Parameters:
        stored: the files' names to the pattern by which the converter knows each.
        targets: the model's names.
        first: the name under which the converter works.
        converter: transformers' `WeightConverter`; None where the tensor is the same under another name.
    """

    stored: dict[str, str]
    targets: tuple[str, ...]
    first: str
    converter: Any = None


class Layout:
    """The files' layout of a model.

    Parameters:
        bare: the model, on the meta device.
        groups: name in the model to the group that it comes from.
        unused: names in the files that the model has no place for.
    """

    def __init__(self, bare: Any, groups: dict[str, Group], unused: tuple[str, ...]) -> None:
        self._bare = bare
        self.groups = groups
        self.unused = unused

    def to_model(self, group: Group, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """The model's tensors, of all tensors of a group as the files have them."""
        if group.converter is None:
            return {group.first: tensors[next(iter(group.stored))]}
        converter = deepcopy(group.converter)
        for name, pattern in group.stored.items():
            converter.add_tensor(group.first, name, pattern, tensors[name])
        made = converter.convert(group.first, model=self._bare, config=self._bare.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}

    def to_stored(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """What transformers makes of the model's tensors when it saves them.

        transformers 5.23 changes a conversion's patterns in place while it reverses it: it is given copies.
        """
        from transformers.core_model_loading import revert_weight_conversion

        own = self._bare._weight_conversions
        self._bare._weight_conversions = deepcopy(own)
        try:
            made: dict[str, Any] = revert_weight_conversion(self._bare, dict(values))
        finally:
            self._bare._weight_conversions = own
        return made

    def returns(self, group: Group, headers: Mapping[str, TensorHeader]) -> str:
        """Why a group wouldn't come back as the files have it; "" where it does, by names and shapes."""
        if group.converter is None:
            several = sorted(group.stored)
            return "" if len(several) == 1 else f"{' and '.join(several)} are one tensor of the model"
        empty = {name: _empty(headers[name].shape) for name in group.stored}
        try:
            back = self.to_stored(self.to_model(group, empty))
        except Exception as error:  # any operation of any family
            return f"{type(error).__name__}: {error}"
        found = {name: tuple(tensor.shape) for name, tensor in back.items()}
        wanted = {name: headers[name].shape for name in group.stored}
        return "" if found == wanted else f"{len(wanted)} tensors would come back as {len(found)} others"


def read_layout(bare: Any, headers: Mapping[str, TensorHeader]) -> Layout:
    """Find where every tensor of the files goes, as transformers does when it loads them.

    Parameters:
        bare: a model of the class, on the meta device.
        headers: the files' tensors.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key

    mapping = get_model_conversion_mapping(bare)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: each for each in converters for pattern in each.source_patterns}
    state = bare.state_dict()
    found: dict[str, dict[str, str]] = {}
    unused = []
    for name in sorted(headers, key=dot_natural_key):
        target, pattern = _renamed(bare, name, renamings, converters, state)
        if target in state:
            found.setdefault(target, {})[name] = pattern or ""
        else:
            unused.append(name)
    bare._weight_conversions = [entry for entry in mapping if entry.was_used()]
    layout = Layout(bare, {}, tuple(unused))
    for first, stored in found.items():
        converter = by_pattern.get(next(iter(stored.values())))
        group = Group(stored, (first,), first, converter)
        if converter is not None:
            group = group._replace(targets=_targets(layout, group, headers))
        layout.groups.update(dict.fromkeys(group.targets, group))
    return layout


def _targets(layout: Layout, group: Group, headers: Mapping[str, TensorHeader]) -> tuple[str, ...]:
    """What a converter makes; the first alone where it can't, which matters where that is to be merged."""
    try:
        return tuple(layout.to_model(group, {name: _empty(headers[name].shape) for name in group.stored}))
    except Exception:  # any operation of any family
        return group.targets


def _renamed(
    bare: Any, name: str, renamings: Iterable[Any], converters: Iterable[Any], state: Mapping[str, Any]
) -> tuple[str, str | None]:
    from transformers.core_model_loading import rename_source_key

    prefix = bare.base_model_prefix
    target, pattern = rename_source_key(name, renamings, converters, prefix, state)
    if target not in state and name in state:
        target, pattern = rename_source_key(name, [], [], prefix, state)
    return target, pattern


def _empty(shape: tuple[int, ...]) -> Any:
    import torch

    return torch.empty(shape, device="meta")
