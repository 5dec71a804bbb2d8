"""The arithmetic of a merge, in float32: PEFT's own on one layer alone, and LoRA's a few rows at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from loadkit.merging.moves import Move

__all__ = ["RowMerge", "bands", "by_rows", "merge_rows", "merge_whole", "terms"]

VALUES = 1 << 18
"""About how many values of a tensor are worked on at a time: what a core's own cache holds of them."""


def by_rows(move: Move, adapter: str) -> bool:
    """Whether rows of the tensor can be merged apart: each depends on its own row of the base alone."""
    from peft.tuners.lora.layer import Embedding, Linear

    wrapper = move.wrapper
    if move.how != "merged" or move.attribute != "weight":
        return False
    if type(wrapper) is Linear:
        return not wrapper.fan_in_fan_out and not wrapper.lora_bias.get(adapter)
    return type(wrapper) is Embedding and adapter not in wrapper.lora_variant


def bands(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """First and last rows of the parts that such a tensor is worked on in.

    None has less than eight rows, if the tensor has more: of so few, a product's last bits may differ.
    """
    step = max(8, VALUES // max(math.prod(shape[1:]), 1) // 8 * 8)
    starts = list(range(0, shape[0], step))
    if len(starts) > 1 and shape[0] - starts[-1] < 8:
        starts.pop()
    return list(zip(starts, [*starts[1:], shape[0]], strict=False))


class RowMerge:
    """LoRA's and DoRA's arithmetic on some rows, step by step as PEFT 0.21 does it on all, in buffers of its
    own.

    Parameters:
        move: one whose tensor can be merged by rows.
        adapter: the adapter's name.
        columns: the tensor's width.
        rows: how many rows there are at most.
    """

    def __init__(self, move: Move, adapter: str, columns: int, rows: int) -> None:
        import torch

        wrapper = move.wrapper
        self.scaling = wrapper.scaling[adapter]
        self._magnitude = None
        if adapter in wrapper.lora_embedding_A:
            self._outer = wrapper.lora_embedding_A[adapter].detach().T
            self._inner = wrapper.lora_embedding_B[adapter].detach().T.contiguous()
        else:
            self._outer = wrapper.lora_B[adapter].weight.detach()
            self._inner = wrapper.lora_A[adapter].weight.detach()
            if adapter in wrapper.lora_magnitude_vector:
                self._magnitude = wrapper.lora_magnitude_vector[adapter].weight.detach()
        self._merged = torch.empty(rows, columns)
        self._delta = torch.empty(rows, columns)

    def matrices(self, start: int, stop: int) -> tuple[Any, Any]:
        """The two of which the product is added, the first with those rows alone."""
        return self._outer[start:stop].contiguous(), self._inner

    def __call__(self, weight: Any, start: int, stop: int) -> Any:
        """What rows `start` to `stop` of the base's tensor become, until the next call."""
        import torch

        merged, delta = self._merged[: stop - start], self._delta[: stop - start]
        merged.copy_(weight[start:stop])
        torch.mm(*self.matrices(start, stop), out=delta)
        if self.scaling != 1:
            delta.mul_(self.scaling)
        merged.add_(delta)
        if self._magnitude is not None:
            factor = self._magnitude[start:stop] / torch.linalg.norm(merged, dim=1)
            merged.mul_(factor.view(-1, 1))
        return merged


def merge_rows(move: Move, adapter: str, weight: Any, start: int, stop: int) -> Any:
    """What rows `start` to `stop` become by PEFT's own `merge`, on a layer that has no others."""
    wrapper = move.wrapper
    held: list[tuple[Any, Any]] = []
    for parameter, rows in _outer(wrapper, adapter, start, stop):
        held.append((parameter, parameter.data))
        parameter.data = rows
    try:
        return merge_whole({move.attribute: move}, adapter, {move.attribute: weight[start:stop]})[
            move.attribute
        ]
    finally:
        for parameter, whole in held:
            parameter.data = whole


def terms(move: Move, adapter: str, weight: Any, start: int, stop: int) -> Any:
    """How large the numbers are that rows `start` to `stop` are added up from, whatever their signs."""
    import torch

    rows = RowMerge(move, adapter, weight.shape[1], stop - start)
    base, (outer, inner) = weight[start:stop].float(), rows.matrices(start, stop)
    added = torch.mm(outer.abs(), inner.abs()).mul_(abs(rows.scaling))
    lengths = torch.mm(outer, inner).mul_(rows.scaling).add_(base).norm(dim=1)
    factor = rows(weight, start, stop).norm(dim=1) / lengths.clamp_min(torch.finfo(torch.float32).tiny)
    return (base.abs() + added) * factor.view(-1, 1).clamp_min(1)


def _outer(wrapper: Any, adapter: str, start: int, stop: int) -> Iterator[tuple[Any, Any]]:
    """The adapter's parameters that have a row for each of the base's, and the rows."""
    if adapter in wrapper.lora_embedding_A:
        columns = wrapper.lora_embedding_A[adapter]
        yield columns, columns.data[:, start:stop]
        return
    outer = wrapper.lora_B[adapter].weight
    yield outer, outer.data[start:stop]
    if adapter in wrapper.lora_magnitude_vector:
        magnitude = wrapper.lora_magnitude_vector[adapter].weight
        yield magnitude, magnitude.data[start:stop]


def merge_whole(moves: Mapping[str, Move], adapter: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """What tensors of one layer become by PEFT's own `merge`, in float32; in float64 where the base is.

    Parameters:
        moves: attribute of the base's module to its move; all have one wrapper.
        values: attribute to the base's tensor; they aren't changed.
    """
    import torch

    move = next(iter(moves.values()))
    module, wrapper = move.module, move.wrapper
    before = {name: module._parameters.get(name) for name in values}
    try:
        for name, value in values.items():
            wide = value.to(torch.float64 if value.dtype == torch.float64 else torch.float32, copy=True)
            module._parameters[name] = torch.nn.Parameter(wide, requires_grad=False)
        with torch.no_grad():
            wrapper.merge(safe_merge=False, adapter_names=[adapter])
        merged = wrapper.get_base_layer()
        return {name: merged._parameters[name].data for name in values}
    finally:
        module._parameters.update(before)
        wrapper.merged_adapters.clear()
        getattr(wrapper, "_caches", {}).clear()
