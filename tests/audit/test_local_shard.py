"""Where the part of a parameter begins that a process holds, against how torch cuts: no processes are
needed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.distributed.tensor import Partial, Replicate, Shard

from loadkit.audit.local_shard import Part, part_of


class Mesh:
    def __init__(self, sizes: tuple[int, ...], here: tuple[int, ...] | None) -> None:
        self.sizes, self.here = sizes, here

    def size(self, dimension: int) -> int:
        return self.sizes[dimension]

    def get_coordinate(self) -> tuple[int, ...] | None:
        return self.here


class Split:
    """What is asked of a DTensor."""

    def __init__(
        self, whole: torch.Tensor, mesh: Mesh, placements: tuple[Any, ...], local: torch.Tensor
    ) -> None:
        self.device_mesh, self.placements, self.local = mesh, placements, local
        self.ndim, self.shape = whole.ndim, whole.shape

    def to_local(self) -> torch.Tensor:
        return self.local


def cut(whole: torch.Tensor, mesh: Mesh, placements: tuple[Any, ...]) -> torch.Tensor:
    """As torch cuts: dimension after dimension of the mesh, in chunks."""
    assert mesh.here is not None
    local = whole
    for size, here, placement in zip(mesh.sizes, mesh.here, placements, strict=True):
        if isinstance(placement, Shard):
            chunks = list(local.chunk(size, placement.dim))
            empty = local.narrow(placement.dim, 0, 0)
            local = [*chunks, *[empty] * (size - len(chunks))][here]
    return local


@pytest.mark.parametrize("rows", [1, 2, 5, 7, 8, 9])
@pytest.mark.parametrize(
    ("sizes", "placements"),
    [
        ((4,), (Shard(0),)),
        ((3,), (Shard(1),)),
        ((4,), (Replicate(),)),
        ((2, 2), (Shard(0), Shard(1))),
        ((2, 3), (Replicate(), Shard(0))),
        ((2, 2), (Shard(0), Shard(0))),
    ],
    ids=str,
)
def test_every_process_finds_its_own_part_in_the_whole(
    rows: int, sizes: tuple[int, ...], placements: tuple[Any, ...]
) -> None:
    whole = torch.arange(rows * 6.0).reshape(rows, 6)
    for here in torch.cartesian_prod(*(torch.arange(n) for n in sizes)).reshape(-1, len(sizes)).tolist():
        mesh = Mesh(sizes, tuple(here))
        local = cut(whole, mesh, placements)
        part = part_of(Split(whole, mesh, placements, local))
        assert part is not None
        assert part.tensor is local
        slices = tuple(slice(a, a + n) for a, n in zip(part.start, local.shape, strict=True))
        assert torch.equal(whole[slices], local)


def test_what_is_no_one_piece_of_the_whole_has_no_part() -> None:
    whole = torch.zeros(4, 6)
    mesh = Mesh((2,), (1,))
    assert part_of(Split(whole, mesh, (Partial(),), whole)) is None
    assert part_of(Split(whole, mesh, (Shard(0),), torch.zeros(3, 6))) is None  # cut otherwise
    assert part_of(Split(whole, Mesh((2,), None), (Shard(0),), whole)) is None  # not in the mesh
    sharded = torch.zeros(0)
    sharded.ds_shape = (4, 6)  # type: ignore[attr-defined]
    assert part_of(sharded) is None
    assert part_of(whole) == Part(whole, ())
