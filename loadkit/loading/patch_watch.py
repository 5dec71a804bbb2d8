"""What a patch did to a model, found by comparing before and after: modules may be others, nothing else."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from loadkit.audit.model_access import base_of, is_packed
from loadkit.loading.as_loaded import Fingerprints, fingerprints, is_here
from loadkit.text.suggest import some_of

__all__ = ["Changed", "Watch"]

HOOKS = (
    "_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks", "_state_dict_pre_hooks",
    "_state_dict_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
)  # fmt: skip
"""Where a `torch.nn.Module` keeps hooks (torch 2.13)."""

DISPATCH = "_hf_hook"
"""Where accelerate keeps its own (accelerate 1.15)."""

HELD = ("_parameters", "_buffers", "_modules", "training", *HOOKS)
"""Attributes of a module that are looked at by themselves, or set for every module after the phases."""

SHARED = ("torch", "torch.nn.functional")
"""Modules that every model computes with, beside those that its classes are from."""


class Changed(NamedTuple):
    """What is otherwise than before.

    Parameters:
        modules: what became of modules, to how many.
        weights: tensors that aren't what they were, in words.
        hooks: the modules that lost hooks.
        model: what is otherwise about the model as a whole, in words.
        elsewhere: classes and functions that the whole process shares, by their names.
    """

    modules: dict[str, int]
    weights: tuple[str, ...]
    hooks: tuple[str, ...]
    model: tuple[str, ...]
    elsewhere: tuple[str, ...]


class _Module(NamedTuple):
    module: Any
    kind: type
    own: dict[str, Any]
    hooks: tuple[Any, ...]


class _Tensor(NamedTuple):
    tensor: Any
    about: dict[str, str]
    version: int


class Watch:
    """A model as it is before a patch; `changed` tells what the patch did.

    Parameters:
        model: the `transformers.PreTrainedModel`, or the `peft.PeftModel` around it.
        opened: the plain tensors of a packed parameter.
        full: whether every value is held against what it was; otherwise a sample of each tensor.
    """

    def __init__(self, model: Any, opened: Callable[[Any], tuple[Any, ...]], *, full: bool) -> None:
        self._modules = {name: _module(module) for name, module in model.named_modules()}
        self._opened, self._full = opened, full
        self._tensors = _tensors(model)
        self._saved = frozenset(model.state_dict().keys())
        self._values = self._fingerprints(self._tensors)
        self._configs = _configs(model)
        self._shared = dict(_shared(model))

    def changed(self, model: Any) -> Changed:
        """What is otherwise. Classes and functions of the whole process are put back."""
        modules = {name: _module(module) for name, module in model.named_modules()}
        configs = _configs(model)
        whole = [
            f"its {name} isn't what it was"
            for name in self._configs
            if configs.get(name) != self._configs[name]
        ]
        return Changed(
            modules=dict(Counter(self._swapped(modules))),
            weights=tuple(self._other_weights(model)),
            hooks=tuple(self._lost(modules)),
            model=tuple(whole),
            elsewhere=tuple(self._put_back()),
        )

    def _swapped(self, now: Mapping[str, _Module]) -> Iterator[str]:
        """What became of each module, of those within a module that is another one only that one."""
        others: set[str] = set()
        for name, before in self._modules.items():
            after = now.get(name)
            if others & set(_above(name)):
                continue
            if after is None:
                yield f"{before.kind.__name__} removed"
            elif after.module is not before.module or after.kind is not before.kind:
                others.add(name)
                yield f"{before.kind.__name__} → {after.kind.__name__}"
            else:
                keys = [*before.own, *(key for key in after.own if key not in before.own)]
                gone = object()
                for key in keys:
                    if before.own.get(key, gone) is not after.own.get(key, gone):
                        yield f"{before.kind.__name__}.{key}"
                if {id(hook) for hook in after.hooks} - {id(hook) for hook in before.hooks}:
                    yield f"{before.kind.__name__} with a hook"
        for name, after in now.items():
            if name not in self._modules and not others & set(_above(name)):
                yield f"{after.kind.__name__} added"

    def _other_weights(self, model: Any) -> Iterator[str]:
        now, saved = _tensors(model), frozenset(model.state_dict().keys())
        gone = [name for name in self._tensors if name not in now]
        added = [name for name in now if name not in self._tensors and name in saved]
        yield from (f"{some_of(names)} {what}" for names, what in ((gone, "gone"), (added, "new")) if names)
        unsaved = [name for name in sorted(self._saved ^ saved) if name not in {*gone, *added}]
        if unsaved:
            yield f"{some_of(unsaved)} saved otherwise"
        both = {name: (self._tensors[name], now[name]) for name in self._tensors if name in now}
        for name, (before, after) in both.items():
            for what, value in before.about.items():
                if after.about[what] != value:
                    yield f"{name}: {what} {value} → {after.about[what]}"
        alike = {name: after for name, (before, after) in both.items() if before.about == after.about}
        values = self._fingerprints(alike)
        other = [
            name
            for name, after in alike.items()
            if self._values.get(name) != values.get(name)
            or (after.tensor is self._tensors[name].tensor and after.version != self._tensors[name].version)
        ]
        if other:
            yield f"{some_of(other)} written to"

    def _fingerprints(self, tensors: Mapping[str, _Tensor]) -> dict[str, tuple[int, ...]]:
        """A few numbers for each tensor whose values are here."""
        parts = {name: self._plain(held.tensor) for name, held in tensors.items()}
        flat = [part for each in parts.values() for part in each]
        found: Fingerprints = fingerprints(flat, exact=self._full)
        numbers = iter(found.numbers)
        return {name: tuple(next(numbers) for _ in each) for name, each in parts.items()}

    def _plain(self, tensor: Any) -> tuple[Any, ...]:
        """What a tensor consists of: itself, or what a packed parameter holds."""
        import torch

        packed = isinstance(tensor, torch.nn.Parameter) and is_packed(tensor)
        parts = self._opened(tensor) if packed else ()
        if not parts and type(tensor.data) is torch.Tensor:
            parts = (tensor,)
        return tuple(part for part in parts if is_here(part))

    def _lost(self, now: Mapping[str, _Module]) -> Iterator[str]:
        for name, before in self._modules.items():
            after = {id(hook) for hook in now[name].hooks} if name in now else set()
            if any(id(hook) not in after for hook in before.hooks):
                yield name or "the model"

    def _put_back(self) -> Iterator[str]:
        for (home, name), before in self._shared.items():
            now = vars(home).get(name)
            if now is not before:
                setattr(home, name, before)
                yield f"{getattr(home, '__qualname__', home.__name__)}.{name}"


def _module(module: Any) -> _Module:
    own = {key: value for key, value in vars(module).items() if key not in HELD and key != DISPATCH}
    hooks = [hook for kind in HOOKS for hook in vars(module).get(kind, {}).values()]
    dispatch = vars(module).get(DISPATCH)
    return _Module(module, type(module), own, tuple(hooks if dispatch is None else [*hooks, dispatch]))


def _tensors(model: Any) -> dict[str, _Tensor]:
    """Parameters and buffers by their names; a tensor of several names under each of them."""
    named = [
        *model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)
    ]  # fmt: skip
    return {
        name: _Tensor(
            tensor,
            {
                "shape": str(tuple(tensor.shape)),
                "dtype": str(tensor.dtype).removeprefix("torch."),
                "device": str(tensor.device),
                "requires_grad": str(tensor.requires_grad),
            },
            tensor._version,
        )
        for name, tensor in named
    }


def _configs(model: Any) -> dict[str, Any]:
    base = base_of(model)
    held = {name: getattr(base, name, None) for name in ("config", "generation_config")}
    return {name: config.to_dict() for name, config in held.items() if config is not None}


def _shared(model: Any) -> Iterator[tuple[tuple[Any, str], Any]]:
    """Functions of the classes of a model, and those of the modules that these are from."""
    classes = {kind for module in model.modules() for kind in type(module).__mro__ if kind is not object}
    named = {*SHARED, *(kind.__module__ for kind in classes)}
    homes = [sys.modules[name] for name in sorted(named) if name in sys.modules]
    for home in (*classes, *homes):
        for name, value in list(vars(home).items()):
            if callable(value) or isinstance(value, property | staticmethod | classmethod):
                yield (home, name), value


def _above(name: str) -> list[str]:
    """The names of the modules that one is in, the model itself left out."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]
