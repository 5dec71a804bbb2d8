"""What checkpoints in codes hold, by their headers alone, and what is wrong with them."""

from __future__ import annotations

from typing import Any

import pytest

from loadkit import Checkpoint
from loadkit.plugins import TensorHeader
from loadkit_plugins.stored_blocks.headers import as_floats, block_of, uneven

FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}


def checkpoint(config: dict[str, Any], **tensors: tuple[str, tuple[int, ...]]) -> Checkpoint:
    headers = {
        name.replace("__", "."): TensorHeader(dtype, shape, 1, "model.safetensors")
        for name, (dtype, shape) in tensors.items()
    }
    return Checkpoint(source="a/b", config={"quantization_config": config}, tensors=headers)


def test_as_if_it_were_in_floating_point() -> None:
    facts = checkpoint(
        FP8,
        norm__weight=("F32", (64,)),
        a__weight=("F8_E4M3", (576, 256)),
        a__weight_scale_inv=("F32", (5, 2)),
        a__activation_scale=("F32", ()),
        b__weight=("I8", (64, 128)),
        b__scale=("F8_E8M0", (64, 8)),
        c__weight=("F8_E4M3", (64, 64)),
        c__qscale_weight=("BF16", ()),
    )
    found = as_floats(facts)
    assert found.checkpoint.quantization_config == {}
    assert not found.faults
    assert found.able
    assert found.coded == {"a.weight", "b.weight", "c.weight"}
    shapes = {name: (header.dtype, header.shape) for name, header in found.checkpoint.tensors.items()}
    assert shapes == {
        "norm.weight": ("F32", (64,)),
        "a.weight": ("BF16", (576, 256)),
        "b.weight": ("BF16", (64, 256)),
        "c.weight": ("BF16", (64, 64)),
    }


def test_mxfp4_as_if_it_were_in_floating_point() -> None:
    facts = checkpoint(
        {"quant_method": "mxfp4"},
        e__down_proj_blocks=("U8", (4, 96, 2, 16)),
        e__down_proj_scales=("U8", (4, 96, 2)),
        e__down_proj_bias=("BF16", (4, 96)),
    )
    found = as_floats(facts)
    assert found.checkpoint.tensors["e.down_proj"].shape == (4, 64, 96)
    assert found.names == {"e.down_proj_blocks": "e.down_proj", "e.down_proj_bias": "e.down_proj_bias"}


@pytest.mark.parametrize(
    ("config", "tensors", "said"),
    [
        (FP8, {"a__weight": ("F8_E4M3", (128, 128))}, "its scale a.weight_scale_inv isn't there"),
        (FP8, {"a__weight": ("F8_E4M3", (256, 128)), "a__weight_scale_inv": ("F32", (3, 1))}, "has the shape 3 × 1"),
        (FP8, {"a__weight": ("F8_E4M3", (256, 128)), "a__weight_scale_inv": ("F32", (2,))}, "has the shape 2,"),
        (FP8, {"a__weight_scale_inv": ("F32", (3, 1))}, "is a scale, and no weight in codes"),
        (FP8, {"a__weight": ("BF16", (128, 128)), "a__weight_scale_inv": ("F32", (1, 1))}, "is a scale, and no weight"),
        ({"quant_method": "mxfp4"}, {"e__up_blocks": ("U8", (2, 8, 3, 16))}, "its scale e.up_scales isn't there"),
        ({"quant_method": "mxfp4"}, {"e__up_scales": ("U8", (2, 8, 3))}, "is a scale, and no weight in codes"),
        ({"quant_method": "mxfp4"}, {"e__up_blocks": ("U8", (2, 8, 3, 8)), "e__up_scales": ("U8", (2, 8, 3))}, "blocks are experts"),
        ({"quant_method": "mxfp4"}, {"e__up_blocks": ("U8", (2, 8, 3, 16)), "e__up_scales": ("U8", (2, 3, 8))}, "needs 2 × 8 × 3"),
    ],
)  # fmt: skip
def test_damage_is_told_by_name(config: dict[str, Any], tensors: dict[str, Any], said: str) -> None:
    found = as_floats(checkpoint(config, **tensors))
    assert len(found.damage) == 1
    assert said in found.damage[0]
    assert not found.able


def test_a_scale_of_another_name_is_no_damage() -> None:
    """transformers renames such for a model of its own; it can't be decoded here."""
    found = as_floats(checkpoint(FP8, w=("F8_E4M3", (4, 128, 128)), w_scale=("F32", (4, 1, 1))))
    assert "w_scale, which isn't one of this format" in found.faults[0]
    assert not found.damage


@pytest.mark.parametrize(
    ("shape", "grid", "block", "sides"),
    [
        ((256, 384), (2, 3), [128, 128], (128, 128)),
        ((576, 7168), (5, 56), [128, 128], (128, 128)),
        ((192, 128), (2, 1), [128, 128], (128, 128)),
        ((64, 128), (64, 4), [128, 128], (1, 32)),
        ((64, 128), (), None, (64, 128)),
        ((3, 64, 128), (1,), None, (64, 128)),
        ((64, 128), (5, 1), [128, 128], None),
        ((3, 64, 128), (2, 1, 1), [128, 128], None),
    ],
)
def test_the_block_of_a_scale(shape: Any, grid: Any, block: Any, sides: Any) -> None:
    assert block_of(shape, grid, block) == sides


def test_blocks_that_are_cut_off() -> None:
    facts = checkpoint(
        FP8,
        a__weight=("F8_E4M3", (576, 256)),
        a__weight_scale_inv=("F32", (5, 2)),
        b__weight=("F8_E4M3", (64, 256)),
        b__weight_scale_inv=("F32", (1, 2)),
        c__weight=("F8_E4M3", (256, 192)),
        c__weight_scale_inv=("F32", (2, 2)),
    )
    assert [name for name, *_ in uneven(facts)] == ["a.weight", "c.weight"]
