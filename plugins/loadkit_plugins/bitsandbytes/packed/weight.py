"""The values of a packed parameter, not unpacked yet: what the code of a model meets under its name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from loadkit_plugins.bitsandbytes.packed import products
from loadkit_plugins.bitsandbytes.packed.codec import DATA, unpack
from loadkit_plugins.bitsandbytes.packed.layout import Layout

__all__ = ["PackedWeight"]

PUT_OFF = (
    "contiguous", "detach", "double", "expand", "flatten", "float", "half", "bfloat16", "movedim", "narrow", "permute", "reshape",
    "squeeze", "swapaxes", "t", "to", "transpose", "type", "type_as", "unflatten", "unsqueeze", "view",
)  # fmt: skip
"""What gives the same values in another form: done once they are unpacked."""

ABOUT = (
    "dim", "element_size", "is_complex", "is_contiguous", "is_floating_point", "ndimension", "nelement", "numel", "stride",
)  # fmt: skip
"""What is asked of a tensor without its values."""


class PackedWeight:
    """The values of a packed parameter, or of one of its units.

    It isn't a tensor, but torch's functions take it for one (`__torch_function__`): products unpack what they
    need, views are put off, and whatever else is asked of it unpacks the whole.

    Parameters:
        layout: how it is packed.
        tensors: the codes and their companions.
        unit: the only unit that it stands for; None for all.
        stacked: whether its first axis counts the units; flat stacks are viewed so.
        turned: whether the last two axes are swapped.
        steps: what is done to the values once they are unpacked.
    """

    def __init__(
        self,
        layout: Layout,
        tensors: Mapping[str, torch.Tensor],
        *,
        unit: int | None = None,
        stacked: bool | None = None,
        turned: bool = False,
        steps: tuple[Callable[[torch.Tensor], torch.Tensor], ...] = (),
    ) -> None:
        self.layout, self.tensors = layout, tensors
        self.unit, self.turned, self.steps = unit, turned, steps
        self.stacked = layout.shape == layout.stacked if stacked is None else stacked

    def but(self, **changes: Any) -> PackedWeight:
        """The same with other settings."""
        settings = {
            "unit": self.unit, "stacked": self.stacked, "turned": self.turned, "steps": self.steps, **changes
        }  # fmt: skip
        return PackedWeight(self.layout, self.tensors, **settings)

    @property
    def plain(self) -> bool:
        """Whether it has all values in their own order, or that with the last two axes swapped."""
        return not self.steps

    @property
    def is_stack(self) -> bool:
        """Whether it is all of a stack, whose first axis counts the experts."""
        return self.plain and self.stacked and self.unit is None and self.layout.units > 1

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that it is multiplied in."""
        if self.steps:
            return self._sketch().dtype
        found: torch.dtype = getattr(torch, self.layout.compute_dtype or self.layout.dtype)
        return found

    @property
    def device(self) -> torch.device:
        """Where the codes are."""
        return self.tensors[DATA].device

    @property
    def shape(self) -> torch.Size:
        """The shape of the values."""
        return self._sketch().shape

    @property
    def units(self) -> Iterator[PackedWeight]:
        """Every unit alone, as matrices with this one's orientation."""
        for unit in range(self.layout.units):
            yield self.but(unit=unit)

    @torch.no_grad()
    def unpacked(self) -> Any:
        """The values, in the dtype that they are multiplied in. No gradient flows to them."""
        if self.unit is not None or self.layout.units == 1:
            values = unpack(self.tensors, self.layout, self.unit or 0)
        else:
            values = self._all()
        values = values.view(self._own_shape()).to(
            getattr(torch, self.layout.compute_dtype or self.layout.dtype)
        )
        values = values.mT if self.turned else values
        for step in self.steps:
            values = step(values)
        return values

    def _all(self) -> torch.Tensor:
        dtype = getattr(torch, self.layout.dtype)
        values = torch.empty(self.layout.stacked, dtype=dtype, device=self.device)
        for unit in range(self.layout.units):
            values[unit] = unpack(self.tensors, self.layout, unit)
        return values

    def _own_shape(self) -> tuple[int, ...]:
        if self.unit is not None:
            return self.layout.unit_shape
        return self.layout.stacked if self.stacked else self.layout.shape

    def _sketch(self) -> torch.Tensor:
        """A tensor of the same shape and dtype, without values."""
        dtype = getattr(torch, self.layout.compute_dtype or self.layout.dtype)
        values = torch.empty(self._own_shape(), dtype=dtype, device="meta")
        values = values.mT if self.turned else values
        for step in self.steps:
            values = step(values)
        return values

    def _then(self, name: str, *given: Any, **named: Any) -> PackedWeight:
        """Put off one of a tensor's methods."""
        sketch = self._sketch()
        result = getattr(sketch, name)(*given, **named)
        whole = self.plain and self.unit is None and not self.turned
        flat = whole and not self.stacked and self.layout.units > 1
        if flat and name in ("view", "reshape") and tuple(result.shape) == self.layout.stacked:
            return self.but(stacked=True)
        last = {sketch.ndim - 2, sketch.ndim - 1}
        swaps = name in ("transpose", "swapaxes") and {axis % sketch.ndim for axis in given} == last
        if self.plain and (swaps or (name == "t" and sketch.ndim == 2)):
            return self.but(turned=not self.turned)
        return self.but(steps=(*self.steps, lambda values: getattr(values, name)(*given, **named)))

    def __getitem__(self, key: Any) -> Any:
        if self.is_stack:
            if isinstance(key, torch.Tensor) and key.ndim == 0 and not key.is_floating_point():
                key = int(key)
            if isinstance(key, int) and not isinstance(key, bool):
                if not -self.layout.units <= key < self.layout.units:
                    raise IndexError(f"expert {key} of {self.layout.units}")
                return self.but(unit=key % self.layout.units)
            if isinstance(key, torch.Tensor) and key.ndim == 1 and key.dtype == torch.int64:
                return self._some(key)
        return self.but(steps=(*self.steps, lambda values: values[key]))

    def _some(self, ids: torch.Tensor) -> torch.Tensor:
        """The values of some experts, one for each id: those that occur are unpacked once."""
        hit, places = torch.unique(ids, return_inverse=True)
        return torch.stack([self.but(unit=unit).unpacked() for unit in hit.tolist()])[places]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.unbind())

    def __len__(self) -> int:
        return len(self._sketch())

    def unbind(self, dim: int = 0) -> tuple[Any, ...]:
        """As `torch.Tensor.unbind`: of a stack, its experts, each packed still."""
        if self.is_stack and dim == 0:
            return tuple(self.units)
        return tuple(self.unpacked().unbind(dim))

    def size(self, dim: int | None = None) -> Any:
        """As `torch.Tensor.size`."""
        return self.shape if dim is None else self.shape[dim]

    def __matmul__(self, other: Any) -> Any:
        return torch.matmul(self, other)  # type: ignore[arg-type]

    def __rmatmul__(self, other: Any) -> Any:
        return torch.matmul(other, self)  # type: ignore[arg-type]

    def __repr__(self) -> str:
        return f"PackedWeight({tuple(self.shape)}, {self.layout.bits} bits)"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in PUT_OFF:
            return lambda *given, **named: self._then(name, *given, **named)
        if name in ("T", "mT"):
            if (self.plain and len(self._own_shape()) == 2) or (name == "mT" and self.plain):
                return self.but(turned=not self.turned)
            return self.but(steps=(*self.steps, lambda values: getattr(values, name)))
        if name.startswith("is_") and name not in ABOUT:
            return getattr(self.tensors[DATA], name)  # where it is
        found = getattr(self._sketch(), name)
        if name in ABOUT:
            return found
        if not callable(found) and not isinstance(found, torch.Tensor):
            return found  # ndim, is_sparse, layout and the like
        return getattr(self.unpacked(), name)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        name = getattr(func, "__name__", "")
        first = args[0] if args else None
        if isinstance(first, cls) and name in PUT_OFF and getattr(torch.Tensor, name, None) is not None:
            return first._then(name, *args[1:], **named)
        return products.product(func, args, named)
