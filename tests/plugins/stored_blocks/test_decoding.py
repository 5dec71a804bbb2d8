"""Codes and scales decode to transformers' own bits, whole or some rows at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from loadkit_plugins.stored_blocks.decoding import decode, decode_blocks
from loadkit_plugins.stored_blocks.files import decoded_files

fp8 = pytest.importorskip(
    "transformers.integrations.finegrained_fp8",
    reason="a transformers whose fp8 needs triton",
    exc_type=ImportError,
)
mxfp4 = pytest.importorskip("transformers.integrations.mxfp4")
Fp8Dequantize, convert_moe_packed_tensors = fp8.Fp8Dequantize, mxfp4.convert_moe_packed_tensors

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


def weights(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def scales(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    if dtype == torch.uint8:
        return torch.randint(110, 130, shape, generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    found = weights(*shape).abs() * 0.01 + 1e-4
    return torch.exp2(found.log2().ceil()).to(dtype) if dtype == torch.float8_e8m0fnu else found.to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    ("codes", "factors", "block"),
    [
        (weights(256, 384).to(E4M3), scales(2, 3), [128, 128]),
        (weights(256, 384).to(E5M2), scales(2, 3), [128, 128]),
        (weights(64, 96).to(E4M3), scales(2, 3, dtype=torch.bfloat16), [32, 32]),
        (weights(64, 96).to(E4M3), scales(1, 1, dtype=torch.float8_e8m0fnu), [128, 128]),
        (weights(64, 96).to(E4M3), scales(64, 3, dtype=torch.uint8), [1, 32]),
        (weights(64, 96).to(E4M3), torch.tensor(0.013), None),
        (weights(64, 96).to(E4M3), torch.tensor([0.013]), None),
        (weights(64, 96).to(E4M3), scales(64, 1), None),
        (torch.randint(-128, 128, (64, 48), dtype=torch.int8), scales(64, 3), [128, 128]),
        (weights(3, 64, 96).to(E4M3), scales(3, 2, 3), [32, 32]),
        (weights(2000, 1024).to(E4M3), scales(2000, 32), [1, 32]),
    ],
)
def test_the_bits_are_transformers(
    codes: torch.Tensor, factors: torch.Tensor, block: Any, dtype: torch.dtype
) -> None:
    theirs = Fp8Dequantize(None)._dequantize_one(codes, factors, output_dtype=dtype)
    ours = decode(codes, factors, block, dtype)
    assert ours.dtype == dtype
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("shape", [(576, 96), (192, 300), (96, 576)])
def test_blocks_that_are_cut_off_keep_the_configs_size(shape: tuple[int, int]) -> None:
    """transformers fails over the first, and takes the 192 rows for two blocks of 96."""
    rows, columns = shape
    codes, factors = weights(*shape).to(E4M3), scales(-(-rows // 128), -(-columns // 128))
    each = factors.repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :columns]
    assert torch.equal(decode(codes, factors, [128, 128], torch.float32), codes.float() * each)


def test_scales_of_another_weight_are_refused() -> None:
    with pytest.raises(ValueError, match="don't belong to a weight"):
        decode(weights(64, 96).to(E4M3), scales(5, 7), [32, 32], torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_experts_of_mxfp4_one_by_one(dtype: torch.dtype) -> None:
    blocks = torch.randint(0, 256, (3, 96, 4, 16), dtype=torch.uint8)
    factors = scales(3, 96, 4, dtype=torch.uint8)
    whole = convert_moe_packed_tensors(blocks, factors, dtype=dtype)
    assert torch.equal(torch.stack([*decode_blocks(blocks, factors, dtype)]), whole)


def test_files_are_read_as_if_they_were_in_floating_point(tmp_path: Path) -> None:
    tensors = {
        "norm.weight": weights(64),
        "a.weight": weights(200, 96).to(E4M3),
        "a.weight_scale_inv": scales(4, 2),
        "b.weight": weights(64, 96).to(E4M3),
        "b.weight_scale_inv": torch.tensor(0.01),
        "b.activation_scale": torch.tensor(0.5),
        "experts.up": weights(3, 100, 64).to(E4M3),
        "experts.up_scale_inv": scales(3, 2, 1),
    }
    save_file(tensors, tmp_path / "f.safetensors")
    with safe_open(tmp_path / "f.safetensors", framework="pt") as file:
        stored = {"quant_method": "fp8", "weight_block_size": [64, 64]}
        found = decoded_files(dict.fromkeys(file.keys(), file), stored, torch.bfloat16)
        assert sorted(found) == ["a.weight", "b.weight", "experts.up", "norm.weight"]
        assert found["norm.weight"] is file
        for name in ("a.weight", "b.weight"):
            whole = decode(tensors[name], tensors[f"{name}_scale_inv"], [64, 64], torch.float32)
            part = found[name].get_slice(name)
            assert part.get_shape() == list(whole.shape)
            for key in (slice(None), slice(70), slice(3, 61), (slice(2, 40), slice(5, 9))):
                assert torch.equal(part[key], whole[key])
        stack = decode(tensors["experts.up"], tensors["experts.up_scale_inv"], [64, 64], torch.float32)
        part = found["experts.up"].get_slice("experts.up")
        for index in (slice(None), slice(1, 2), (1, slice(70)), (2, slice(10, 20))):
            assert torch.equal(part[index], stack[index])


def test_stacks_of_mxfp4_are_read_by_rows(tmp_path: Path) -> None:
    blocks, factors = (
        torch.randint(0, 256, (3, 40, 4, 16), dtype=torch.uint8),
        scales(3, 40, 4, dtype=torch.uint8),
    )
    save_file({"e.up_proj_blocks": blocks, "e.up_proj_scales": factors}, tmp_path / "f.safetensors")
    whole = convert_moe_packed_tensors(blocks, factors, dtype=torch.bfloat16)
    with safe_open(tmp_path / "f.safetensors", framework="pt") as file:
        found = decoded_files(dict.fromkeys(file.keys(), file), {"quant_method": "mxfp4"}, torch.bfloat16)
        part = found["e.up_proj"].get_slice("e.up_proj")
        assert part.get_shape() == [3, 128, 40]
        for index in (slice(None), (0, slice(1)), (2, slice(30, 70)), (1, slice(None))):
            assert torch.equal(part[index], whole[index])
