"""Modules that carry packed parameters: subclasses of their own classes, made for that."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

import bitsandbytes
import torch

from loadkit_plugins.bitsandbytes.packed.codec import DATA
from loadkit_plugins.bitsandbytes.packed.layout import Layout
from loadkit_plugins.bitsandbytes.packed.weight import PackedWeight

__all__ = ["Carrier", "Packed", "Packing", "carry", "carry_tied", "is_carrier", "packed", "uncarry"]


class Packing(NamedTuple):
    """What the codes of a parameter know of it.

    Parameters:
        name: what their module calls it.
        layout: how it is packed.
        companions: those of the module, by name; the module's own mapping.
    """

    name: str
    layout: Layout
    companions: dict[str, torch.Tensor]

    @property
    def beside(self) -> dict[str, torch.Tensor]:
        """The parameter's companions by their short names."""
        return {each: self.companions[f"{self.name}_{each}"] for each in self.layout.companions}


class Params4bit(bitsandbytes.nn.Params4bit):  # type: ignore[misc]
    """The codes of a parameter of 4 bits, under the name by which PEFT 0.21 knows what it must not cast, and
    counts twice."""

    packing: Packing

    def __deepcopy__(self, memo: Any) -> Any:
        return codes(copy.deepcopy(self.data, memo), copy.deepcopy(self.packing, memo))


class Codes8bit(torch.nn.Parameter):
    """The codes of a parameter of 8 bits."""

    packing: Packing

    def __deepcopy__(self, memo: Any) -> Any:
        return codes(copy.deepcopy(self.data, memo), copy.deepcopy(self.packing, memo))


class Packed(NamedTuple):
    """A packed parameter of a model."""

    path: str
    module: Any
    name: str
    layout: Layout


def codes(data: torch.Tensor, packing: Packing) -> Any:
    """A parameter of codes, which knows how it is packed."""
    layout = packing.layout
    made: Any
    if layout.bits == 4:
        made = Params4bit(
            data,
            quant_type=layout.quant_type,
            compress_statistics=layout.nested,
            quant_storage=getattr(torch, layout.storage),
            bnb_quantized=True,
        )
    else:
        made = torch.Tensor._make_subclass(Codes8bit, data, False)
    made.packing = packing
    return made


class Carrier(torch.nn.Module):
    """What modules with packed parameters have beside their own class."""

    _base: type
    _packed: tuple[str, ...]
    packed_layouts: dict[str, Layout]
    packed_companions: dict[str, torch.Tensor]
    packed_deltas: dict[str, Callable[[PackedWeight], Any]]
    """What makes of a parameter's values those that the forward pass meets, such as with LoRA beside them."""

    def __getattr__(self, name: str) -> Any:
        companions = self.__dict__.get("packed_companions") or {}
        return companions[name] if name in companions else super().__getattr__(name)

    def _apply(self, fn: Callable[[Any], Any], recurse: bool = True) -> Any:
        """Move what is packed, and leave its dtypes: codes in floating point, and scales, are no numbers to
        cast."""
        own = {id(self._parameters.get(name)) for name in self._packed}

        def apply(tensor: Any) -> Any:
            return _kept(tensor, fn) if id(tensor) in own else fn(tensor)

        super()._apply(apply, recurse)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            self.packed_companions.update({n: _kept(t, fn) for n, t in self.packed_companions.items()})
        self._know_codes()
        return self

    def _know_codes(self) -> None:
        """Have every parameter of codes know its packing, whoever put it there."""
        for name in self._packed:
            held, layout = self._parameters.get(name), self.packed_layouts[name]
            if held is not None and not hasattr(held, "packing"):
                self._parameters[name] = codes(held.data, Packing(name, layout, self.packed_companions))

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._know_codes()

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, tensor in self.packed_companions.items():
            destination[prefix + name] = tensor

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, strict: bool, missing_keys: list[str],
        unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        for name, tensor in self.packed_companions.items():
            key = prefix + name
            if key not in state_dict:
                missing_keys += [key] if strict else []
                continue
            if key in unexpected_keys:
                unexpected_keys.remove(key)
            if state_dict[key].shape != tensor.shape:
                error_msgs.append(f"{key}: {tuple(state_dict[key].shape)} instead of {tuple(tensor.shape)}")
            else:
                tensor.copy_(state_dict[key])

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _remade, (self._base, self._packed), self.__dict__


def _kept(tensor: torch.Tensor, fn: Callable[[Any], Any]) -> torch.Tensor:
    moved: torch.Tensor = fn(tensor)
    return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)


def _remade(base: type, names: tuple[str, ...]) -> Any:
    made = object.__new__(_carrier(base, names))
    made.__dict__["_parameters"], made.__dict__["_modules"], made.__dict__["_buffers"] = {}, {}, {}
    return made


@cache
def _carrier(base: type, names: tuple[str, ...]) -> type[Carrier]:
    own = {name: _property(name) for name in names}
    about = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
    return type(base.__name__, (Carrier, base), {**about, **own, "_base": base, "_packed": names})


def _property(name: str) -> property:
    """A packed parameter as attribute: its values, not unpacked. FSDP 1 sets plain tensors in its place."""

    def get(self: Any) -> Any:
        data = self._parameters.get(name)
        if data is None:
            data = self.__dict__.get(f"_view_of_{name}")
        if data is None:
            raise AttributeError(f"{self._base.__name__!r} object has no attribute {name!r}")
        if hasattr(data, "_local_tensor"):
            return data  # a part of the codes, which FSDP 2 looks for, and nobody multiplies with
        layout = self.packed_layouts[name]
        beside = Packing(name, layout, self.packed_companions).beside
        weight = PackedWeight(layout, {DATA: data, **beside})
        adapted = self.packed_deltas.get(name)
        return weight if adapted is None else adapted(weight)

    def put(self: Any, value: Any) -> None:
        self.__dict__[f"_view_of_{name}"] = value

    def drop(self: Any) -> None:
        self.__dict__.pop(f"_view_of_{name}", None)

    return property(get, put, drop)


def is_carrier(module: Any) -> bool:
    """Whether a module has packed parameters."""
    return isinstance(module, Carrier)


def carry(module: Any, parts: Mapping[str, tuple[Layout, Mapping[str, torch.Tensor]]]) -> None:
    """Have a module carry packed parameters from now on.

    Parameters:
        module: has parameters of these names, whose values go.
        parts: name to layout and tensors (`codec.pack`).
    """
    layouts = dict(module.__dict__.get("packed_layouts", {}))
    companions = dict(module.__dict__.get("packed_companions", {}))
    base: Any = module._base if is_carrier(module) else type(module)
    for name, (layout, tensors) in parts.items():
        held = tensors[DATA].detach()
        module._parameters[name] = torch.nn.Parameter(held, requires_grad=False)
        layouts[name] = layout
        for each in layout.companions:
            module._buffers.pop(f"{name}_{each}", None)
            companions[f"{name}_{each}"] = tensors[each]
    module.__dict__["packed_layouts"], module.__dict__["packed_companions"] = layouts, companions
    module.__dict__.setdefault("packed_deltas", {})
    module.__class__ = _carrier(base, tuple(layouts))
    module._know_codes()


def carry_tied(module: Any, name: str, other: Any, theirs: str) -> None:
    """Have a module carry a packed parameter of another one's: both stay one tensor.

    Parameters:
        module, name: the module, and what it calls the parameter.
        other, theirs: the module that carries it already, and what that calls it.
    """
    layout, held = other.packed_layouts[theirs], other._parameters[theirs]
    carry(module, {name: (layout, {DATA: held, **held.packing.beside})})
    module._parameters[name] = held


def uncarry(module: Any, dtype: torch.dtype | None = None) -> None:
    """Unpack a module's parameters for good: it becomes an instance of its own class again.

    Parameters:
        module: carries packed parameters.
        dtype: of the values; None for the one that they were packed from.
    """
    values = {name: getattr(module, name) for name in module.packed_layouts}
    for name, weight in values.items():
        found = weight.unpacked().to(dtype or getattr(torch, weight.layout.dtype))
        module._parameters[name] = torch.nn.Parameter(found, requires_grad=False)
    module.__class__ = module._base
    for name in ("packed_layouts", "packed_companions", "packed_deltas"):
        del module.__dict__[name]


def packed(model: Any) -> Iterator[Packed]:
    """Every packed parameter of a model."""
    for path, module in model.named_modules():
        if is_carrier(module):
            for name, layout in module.packed_layouts.items():
                yield Packed(f"{path}.{name}" if path else name, module, name, layout)
