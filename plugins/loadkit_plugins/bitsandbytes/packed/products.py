"""Products of activations with packed weights: unpacked for the time of one product, and in the backward pass
again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import bitsandbytes
import torch
from torch.nn import functional
from torch.utils._pytree import tree_flatten, tree_unflatten

from loadkit_plugins.bitsandbytes.packed.codec import quant_state, unit_codes
from loadkit_plugins.bitsandbytes.packed.layout import BLOCK

if TYPE_CHECKING:
    from loadkit_plugins.bitsandbytes.packed.weight import PackedWeight

__all__ = ["multiply", "product"]

RIGHT = frozenset({"matmul", "__matmul__", "__rmatmul__", "mm", "bmm"})
"""Names of torch's functions that multiply the first argument with the second."""


def product(func: Callable[..., Any], args: Sequence[Any], named: Mapping[str, Any]) -> Any:
    """What a function of torch's gives where some of its arguments are packed.

    Parameters:
        func: the function.
        args, named: its arguments.
    """
    name = getattr(func, "__name__", "")
    given: list[Any] = [*args, *named.values()]
    x: Any
    weight: Any
    x, weight = given[:2] if len(given) > 1 else (None, None)
    if isinstance(x, torch.Tensor) and _packed(weight) and not any(map(_packed, given[2:])):
        if func is functional.linear:
            bias = given[2] if len(given) > 2 else None
            return multiply(x, weight, bias, turned=True)
        if name in RIGHT and len(given) == 2:
            if weight.is_stack and x.ndim == 3:
                return torch.stack([multiply(x[unit], matrix) for unit, matrix in enumerate(weight.units)])
            return multiply(x, weight)
    return _recomputed(func, args, named)


def multiply(
    x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None = None, *, turned: bool = False
) -> Any:
    """`x @ weight`, or with `turned` `F.linear(x, weight, bias)`.

    Parameters:
        x: activations, of any floating dtype: the product has it too.
        weight: a matrix, or what `torch.matmul` takes beside `x`.
        bias: added, where turned.
        turned: whether the weight's last axis is summed over.
    """
    wide = x.dtype
    inputs = x.to(weight.dtype)
    bias = None if bias is None else bias.to(weight.dtype)
    if _is_layer(weight) and weight.turned != turned:
        layout, unit = weight.layout, weight.unit or 0
        codes = unit_codes(weight.tensors, layout, unit).detach()
        state = quant_state(weight.tensors, layout, unit)
        found = bitsandbytes.matmul_4bit(inputs, codes.t(), bias=bias, quant_state=state)
    else:
        found = _Product.apply(inputs, bias, weight, turned)  # type: ignore[no-untyped-call]
    return found.to(wide)


def _is_layer(weight: PackedWeight) -> bool:
    """Whether bitsandbytes' own product takes it: a matrix of 4 bits, in the dtype that it is unpacked to."""
    layout = weight.layout
    return (
        weight.plain
        and layout.bits == 4
        and layout.count % BLOCK == 0
        and (weight.unit is not None or (layout.units == 1 and len(layout.shape) == 2))
        and layout.compute_dtype in ("", layout.dtype)
    )


class _Product(torch.autograd.Function):
    """A product whose weight isn't kept for the backward pass, but unpacked again."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, bias: torch.Tensor | None, weight: PackedWeight, turned: bool
    ) -> torch.Tensor:
        ctx.weight, ctx.turned = weight, turned
        with torch.autocast(x.device.type, enabled=False):  # x has the dtype already
            values = weight.unpacked()
            return functional.linear(x, values, bias) if turned else torch.matmul(x, values)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        of_x = of_bias = None
        if ctx.needs_input_grad[0]:
            values = ctx.weight.unpacked()
            of_x = torch.matmul(gradient, values if ctx.turned else values.mT)
        if ctx.needs_input_grad[1]:
            of_bias = gradient.reshape(-1, gradient.shape[-1]).sum(0)
        return of_x, of_bias, None, None


def _recomputed(func: Callable[..., Any], args: Sequence[Any], named: Mapping[str, Any]) -> Any:
    """Any function, over unpacked weights that aren't kept: the backward pass does it again."""
    leaves, form = tree_flatten((args, dict(named)))
    inputs = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]

    def again(*tensors: torch.Tensor) -> Any:
        fresh = iter(tensors)
        filled = [
            leaf.unpacked() if _packed(leaf) else next(fresh) if isinstance(leaf, torch.Tensor) else leaf
            for leaf in leaves
        ]
        given, options = tree_unflatten(filled, form)
        return func(*given, **options)

    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs):
        return _Recomputed.apply(again, *inputs)  # type: ignore[no-untyped-call]
    return again(*inputs)


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, again: Callable[..., Any], *inputs: torch.Tensor) -> Any:
        ctx.again = again
        ctx.save_for_backward(*inputs)
        with torch.no_grad():
            return again(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        inputs = [
            tensor.detach().requires_grad_(needed)
            for tensor, needed in zip(ctx.saved_tensors, ctx.needs_input_grad[1:], strict=True)
        ]
        with torch.enable_grad():
            result = ctx.again(*inputs)
        outputs = result if isinstance(result, tuple) else (result,)
        wanted = [tensor for tensor in inputs if tensor.requires_grad]
        pairs = [(o, g) for o, g in zip(outputs, gradients, strict=True) if g is not None and o.requires_grad]
        found = iter(
            torch.autograd.grad([o for o, _ in pairs], wanted, [g for _, g in pairs], allow_unused=True)
        )
        return None, *(next(found) if tensor.requires_grad else None for tensor in inputs)


def _packed(value: Any) -> bool:
    return hasattr(value, "layout") and hasattr(value, "unpacked")
