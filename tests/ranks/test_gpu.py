"""The same on GPUs: with nccl over several where several are found, on one where one is. Skipped, in plain
sight, elsewhere."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from ranks.launch import launch
from ranks.test_engines import CASES, alone

import loadkit

GPUS = torch.cuda.device_count()
CLOSE = {"rtol": 1e-3, "atol": 1e-3}
"""Kernels of the two devices round differently."""

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(GPUS == 0, reason="no CUDA device on this machine"),
]
several = pytest.mark.skipif(GPUS < 2, reason=f"needs two CUDA devices, this machine has {GPUS}")


@pytest.fixture(scope="module")
def checkpoint(tiny) -> Path:
    return tiny("mistral", dtype="float32")


def on_gpus(checkpoint: Path, ranks: int, out: Path, case: str) -> dict:
    done = launch("engines:engines", ranks, out, checkpoint, case, LOADKIT_TEST_DEVICE="cuda")
    assert done.code == 0, done.output
    found = torch.load(out / f"{case}.pt")
    assert "error" not in found, found["error"]
    return found


@several
@pytest.mark.parametrize("case", CASES)
def test_several_gpus_compute_what_one_process_does(case: str, checkpoint: Path, tmp_path: Path) -> None:
    engine, profile = case.split()
    found = on_gpus(checkpoint, 2, tmp_path, case)
    parts, names = (1, "lora_") if engine == "tp" else (2, "lora_B")
    expected = alone(checkpoint, profile, parts, names)
    torch.testing.assert_close(found["loss"], expected["loss"].cpu(), **CLOSE)
    for name, grad in expected["gradients"].items():
        torch.testing.assert_close(found["gradients"][name], grad, **CLOSE)
    if engine != "tp":
        assert len({*found["adapters"]}) == 1


@several
@pytest.mark.skipif(not importlib.util.find_spec("deepspeed"), reason="deepspeed isn't installed")
@pytest.mark.parametrize("profile", ["full", "lora"])
def test_zero3_on_several_gpus(profile: str, checkpoint: Path, tmp_path: Path) -> None:
    found = on_gpus(checkpoint, 2, tmp_path, f"zero3 {profile}")
    torch.testing.assert_close(found["loss"], alone(checkpoint, profile, 2)["loss"].cpu(), **CLOSE)


@pytest.mark.parametrize("case", ["ddp lora", "ddp qlora"])
def test_one_rank_on_one_gpu(case: str, checkpoint: Path, tmp_path: Path) -> None:
    """The launcher's variables alone change nothing."""
    found = on_gpus(checkpoint, 1, tmp_path, case)
    torch.testing.assert_close(found["loss"], alone(checkpoint, case.split()[1], 1)["loss"].cpu(), **CLOSE)


@several
def test_each_rank_loads_on_its_own_gpu(checkpoint: Path) -> None:
    for local_rank in range(2):
        topology = loadkit.Topology(
            world_size=2, rank=local_rank, local_rank=local_rank, local_world_size=2, engine="ddp"
        )
        assert loadkit.plan(checkpoint, "lora", topology=topology).placement.device_map == {"": local_rank}
