"""A weight with LoRA beside it: what code that multiplies with a parameter meets in the parameter's place.

PEFT 0.21 adds B·A to a whole stack of experts at every forward pass. Here a product with a part of the stack
is one with the base's part and two narrow ones with the factors' parts, so that the base may stay packed, and
only experts that tokens were sent to cost anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch.nn import functional

__all__ = ["AdaptedWeight", "Factors"]

PRODUCTS = frozenset({"__matmul__", "__rmatmul__", "bmm", "matmul", "mm"})
"""torch's products of two tensors, by name."""

SWAPS = frozenset({"swapaxes", "swapdims", "transpose"})

AS_IT_IS = frozenset({"contiguous"})
"""Methods after which a weight is multiplied as before."""

ALIGNED = 16
"""Bytes that rows of grouped products are a multiple of (torch 2.13)."""


@dataclass(frozen=True)
class Factors:
    """What one adapter adds to a weight: scale · left @ right.

    Parameters:
        left: (…, rows, rank), with the axes that the weight has before its last two.
        right: (…, rank, columns).
        scale: of the product.
        dropout: what activations go through before the factors.
    """

    left: torch.Tensor
    right: torch.Tensor
    scale: float
    dropout: Callable[[torch.Tensor], torch.Tensor]

    @cached_property
    def units(self) -> tuple[Factors, ...]:
        """Those of each expert. Cut once: the gradient of a single cut is as large as the whole."""
        pairs = zip(self.left.unbind(), self.right.unbind(), strict=True)
        return tuple(replace(self, left=left, right=right) for left, right in pairs)

    @property
    def turned(self) -> Factors:
        """Those of the weight with its last two axes swapped."""
        return replace(self, left=self.right.mT, right=self.left.mT)

    def of(self, key: Any) -> Factors:
        """Those of some experts, or of one."""
        if isinstance(key, int):
            return self.units[key]
        return replace(self, left=self.left[key], right=self.right[key])

    def stacked(self, units: int) -> Factors:
        """Those of a flat stack, seen as one of so many matrices: each has its rows, and all columns."""
        left = self.left.view(units, -1, self.left.shape[-1])
        return replace(self, left=left, right=self.right.expand(units, *self.right.shape))

    def values(self) -> torch.Tensor:
        """What is added, as a whole."""
        return (self.left @ self.right) * self.scale

    def product(self, x: torch.Tensor, multiply: Callable[[Any, Any], Any]) -> torch.Tensor:
        """What `multiply(x, weight)` has in addition.

        Parameters:
            x: activations, in any floating dtype: the factors are multiplied in their own.
            multiply: a product that sums over the activations' last axis and the weight's last but one.
        """
        inputs = self.dropout(x.to(self.left.dtype))
        found: torch.Tensor = multiply(multiply(inputs, self.left), self.right) * self.scale
        return found

    def grouped(self, x: torch.Tensor, ends: torch.Tensor, multiply: Callable[[Any, Any], Any]) -> Any:
        """What a grouped product has in addition: rows in groups, each with the factors of its expert."""
        inputs = self.dropout(x.to(self.left.dtype))
        if all(each.shape[-1] * each.element_size() % ALIGNED == 0 for each in (self.left.mT, self.right)):
            narrow = self.left.shape[-1] * self.left.element_size() % ALIGNED == 0
            if narrow:
                return multiply(multiply(inputs, self.left), self.right) * self.scale
        stops = ends.tolist()
        parts = [
            (inputs[start:stop] @ unit.left) @ unit.right
            for start, stop, unit in zip([0, *stops], stops, self.units, strict=False)
            if stop > start
        ]
        rest = inputs.new_zeros(len(x) - stops[-1], self.right.shape[-1])
        return torch.cat([*parts, rest]) * self.scale


class AdaptedWeight:
    """A weight, or a part of it, and what adapters add to it.

    It isn't a tensor, but torch's functions take it for one. Products are done in parts; whatever else is
    asked of it gets the whole sum, which is right, and as large as the base's part.

    Parameters:
        base: a tensor, or a packed weight (which has `unpacked()`).
        factors: of every adapter that is on.
    """

    def __init__(self, base: Any, factors: Sequence[Factors]) -> None:
        self.base, self.factors = base, tuple(factors)

    def values(self) -> torch.Tensor:
        """Base and factors added up, with gradients to the factors."""
        found: torch.Tensor = self.base.unpacked() if hasattr(self.base, "unpacked") else self.base
        for each in self.factors:
            found = found + each.values().to(found.dtype)
        return found

    def _turned(self, base: Any) -> AdaptedWeight:
        return AdaptedWeight(base, [each.turned for each in self.factors])

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, torch.Tensor) and key.ndim == 0 and not key.is_floating_point():
            key = int(key)
        whole = isinstance(key, slice) or (isinstance(key, torch.Tensor) and key.ndim == 1)
        one = isinstance(key, int) and not isinstance(key, bool)
        if len(self.base.shape) == 3 and (one or whole):
            return AdaptedWeight(self.base[key], [each.of(key) for each in self.factors])
        return self.values()[key]

    def __iter__(self) -> Any:
        return iter(self.unbind())

    def __len__(self) -> int:
        return len(self.base)

    def unbind(self, dim: int = 0) -> tuple[Any, ...]:
        """As `torch.Tensor.unbind`: of a stack, its experts, each with its adapters."""
        if len(self.base.shape) == 3 and dim == 0:
            return tuple(self[unit] for unit in range(len(self.base)))
        return tuple(self.values().unbind(dim))

    def __matmul__(self, other: Any) -> Any:
        return torch.matmul(self, other)  # type: ignore[arg-type]

    def __rmatmul__(self, other: Any) -> Any:
        return torch.matmul(other, self)  # type: ignore[arg-type]

    def __repr__(self) -> str:
        return f"AdaptedWeight({self.base!r}, {len(self.factors)} adapters)"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in ("T", "mT") and (name == "mT" or len(self.base.shape) == 2):
            return self._turned(getattr(self.base, name))
        found = getattr(self.base, name)
        if not callable(found) and not isinstance(found, torch.Tensor):
            return found  # shape, dtype, device and the like
        return lambda *given, **named: self._method(name, given, named)

    def _method(self, name: str, given: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
        """What a tensor's method gives."""
        shape = tuple(self.base.shape)
        if name in AS_IT_IS:
            return AdaptedWeight(getattr(self.base, name)(*given, **named), self.factors)
        if name in ("dim", "size", "numel", "element_size", "is_contiguous", "stride", "nelement"):
            return getattr(self.base, name)(*given, **named)
        last = {len(shape) - 2, len(shape) - 1}
        swaps = name in SWAPS and not named and {axis % len(shape) for axis in given} == last
        if swaps or (name == "t" and len(shape) == 2):
            return self._turned(getattr(self.base, name)(*given))
        if name in ("view", "reshape") and not named and len(shape) == 2:
            result = getattr(self.base, name)(*given)
            form = tuple(result.shape)
            if len(form) == 3 and form[-1] == shape[-1]:
                return AdaptedWeight(result, [each.stacked(form[0]) for each in self.factors])
        if name in PRODUCTS:
            return getattr(torch, name.strip("_"))(self, *given, **named)
        return getattr(self.values(), name)(*given, **named)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        name = getattr(func, "__name__", "")
        first = args[0] if args else None
        if isinstance(first, cls) and getattr(torch.Tensor, name, None) is not None and name not in PRODUCTS:
            return first._method(name, args[1:], named)
        found = _product(func, name, args, named)
        if found is not None:
            return found
        return func(*map(_whole, args), **{key: _whole(each) for key, each in named.items()})


def _written_out(name: str) -> Any:
    """An operator that needs the values."""
    return lambda weight, *others: getattr(weight.values(), name)(*map(_whole, others))


for _operator in ("add", "mul", "neg", "radd", "rmul", "rsub", "rtruediv", "sub", "truediv"):
    setattr(AdaptedWeight, f"__{_operator}__", _written_out(f"__{_operator}__"))


def _product(func: Any, name: str, args: Sequence[Any], named: Mapping[str, Any]) -> Any:
    """What a product of activations and an adapted weight gives; None for what is none."""
    given = [*args, *named.values()]
    if len(given) < 2 or sum(isinstance(each, AdaptedWeight) for each in given) != 1:
        return None
    one, other, *more = given
    if func is functional.linear and isinstance(other, AdaptedWeight):
        found = functional.linear(one, other.base, *more)
        parts = [each.turned.product(one, torch.matmul) for each in other.factors]
    elif name in PRODUCTS and not more and isinstance(other, AdaptedWeight):
        product = torch.matmul if name.startswith("__") else func
        found = product(one, other.base)
        parts = [each.product(one, product) for each in other.factors]
    elif name in PRODUCTS and not more and isinstance(one, AdaptedWeight) and other.ndim > 1:
        product = torch.matmul if name.startswith("__") else func
        found = product(one.base, other)
        turned = other.mT  # W x is (xᵀ Wᵀ)ᵀ
        parts = [each.turned.product(turned, product).mT for each in one.factors]
    elif "grouped_mm" in name and isinstance(other, AdaptedWeight) and isinstance(one, torch.Tensor):
        ends = named.get("offs", args[2] if len(args) > 2 else None)
        if not isinstance(ends, torch.Tensor):
            return None
        found = func(args[0], other.base, *args[2:], **named)

        def multiply(x: Any, weight: Any) -> Any:
            return func(x, weight, *args[2:], **named)

        parts = [each.grouped(one, ends, multiply) for each in other.factors]
    else:
        return None
    for part in parts:
        found = found + part.to(found.dtype)
    return found


def _whole(value: Any) -> Any:
    return value.values() if isinstance(value, AdaptedWeight) else value
