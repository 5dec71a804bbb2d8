"""The part of a parameter that this process holds, where an engine has split it as a DTensor."""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ["Part", "part_of"]


class Part(NamedTuple):
    """A part: its own tensor, and where it begins in the whole, by dimension; no start for the whole."""

    tensor: Any
    start: tuple[int, ...] = ()


def part_of(parameter: Any) -> Part | None:
    """The part of a parameter that is here: the whole where it isn't split.

    None where that isn't one piece of the whole, as of packed projections, and under ZeRO-3.
    """
    if hasattr(parameter, "ds_shape"):
        return None
    if not hasattr(parameter, "device_mesh"):
        return Part(parameter)
    import torch.distributed.tensor as distributed  # takes half a second, unless there are DTensors already

    mesh, start, size = parameter.device_mesh, [0] * parameter.ndim, list(parameter.shape)
    here = mesh.get_coordinate()
    if here is None:
        return None
    for number, placement in enumerate(parameter.placements):
        if type(placement) is distributed.Replicate:
            continue
        if type(placement) is not distributed.Shard:
            return None
        step = -(-size[placement.dim] // mesh.size(number))  # as torch.chunk cuts
        offset = min(here[number] * step, size[placement.dim])
        start[placement.dim] += offset
        size[placement.dim] = min(step, size[placement.dim] - offset)
    local = parameter.to_local()
    return Part(local, tuple(start)) if list(local.shape) == size else None
