"""Loss and gradients under an engine are the single process's, in real processes with gloo."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks.engines import BATCH, gradients, load_as, step, stirred, tokens
from ranks.launch import launch

CASES = [
    "ddp full",
    "ddp lora",
    "ddp qlora",
    "fsdp2 full",
    "fsdp2 lora",
    "fsdp2 qlora",
    "tp full",
    "tp lora",
]
TOLERANCE = 2e-6
"""Of the largest gradient: sums are taken in another order. What a rank computes alone is exact."""


@pytest.fixture(scope="module")
def checkpoint(tiny) -> Path:
    return tiny("mistral", dtype="float32")


@pytest.fixture(scope="module")
def two(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return launched(checkpoint, 2, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def four(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return launched(checkpoint, 4, tmp_path_factory.mktemp("four"), cases=[c for c in CASES if "tp" not in c])


def launched(checkpoint: Path, ranks: int, out: Path, *, cases: list[str] = CASES, **more: Any) -> Path:
    done = launch("engines:engines", ranks, out, checkpoint, *cases, **more)
    assert done.code == 0, done.output
    return out


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As each launched process computes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def alone(checkpoint: Path, profile: str, parts: int, names: str = "lora_B") -> dict[str, Any]:
    """The single process: one load with rank 0's seed, the batch in as many parts as there are ranks, their
    mean."""
    torch.manual_seed(0)
    model = stirred(load_as(str(checkpoint), profile).model, names)
    device = next(model.parameters()).device
    losses = [step(model, ids.to(device)) for ids in tokens(model.config.vocab_size).chunk(parts)]
    whole = {name: grad / parts for name, grad in gradients(model).items()}
    return {"loss": torch.stack(losses).sum() / parts, "gradients": whole}


def compare(found: dict[str, Any], expected: dict[str, Any], *, exact: bool) -> None:
    assert "error" not in found, found["error"]
    assert found["gradients"].keys() == expected["gradients"].keys()
    assert torch.isfinite(found["loss"])
    for name, grad in expected["gradients"].items():
        own = found["gradients"][name]
        assert bool(grad.abs().max() > 0), name
        if exact:
            assert torch.equal(own, grad), name
        else:
            largest = max(float(g.abs().max()) for g in expected["gradients"].values())
            assert float((own - grad).abs().max()) <= TOLERANCE * largest, name
    if exact:
        assert torch.equal(found["loss"], expected["loss"])
    else:
        torch.testing.assert_close(found["loss"], expected["loss"], rtol=TOLERANCE, atol=0)


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_compute_what_one_process_does(case: str, checkpoint: Path, two: Path, one_thread) -> None:
    engine, profile = case.split()
    found = torch.load(two / f"{case}.pt")
    parts = 1 if engine == "tp" else 2
    names = "lora_" if engine == "tp" else "lora_B"  # split layers of an adapter are drawn by their parts
    # Two addends have one sum, and half of it is exact; tensor parallelism adds up inside of products.
    compare(found, alone(checkpoint, profile, parts, names), exact=engine != "tp")
    assert (found["split"] > 0) == (engine != "ddp")
    assert found.get("findings", []) == []  # parts of split layers can be compared with the files


@pytest.mark.parametrize("case", [c for c in CASES if "lora" in c and "tp" not in c])
def test_adapters_start_the_same_on_all_ranks(case: str, two: Path) -> None:
    hashes = torch.load(two / f"{case}.pt")["adapters"]
    assert len(hashes) == 2
    assert len({*hashes}) == 1


@pytest.mark.slow
@pytest.mark.parametrize("case", [c for c in CASES if "tp" not in c])
def test_four_ranks_compute_what_one_process_does(
    case: str, checkpoint: Path, four: Path, one_thread
) -> None:
    found = torch.load(four / f"{case}.pt")
    compare(found, alone(checkpoint, case.split()[1], BATCH), exact=False)
    assert len({*found["adapters"]}) == 1


MIXED = [
    f"{engine} {profile}"
    for engine in ("ddp", "fsdp2")
    for profile in ("qlora", "lora+experts", "qlora+experts")
]


@pytest.mark.slow
def test_two_ranks_train_a_mixture(tiny, tmp_path: Path, one_thread) -> None:
    """Over plain stacks of experts and packed ones, with adapters of theirs and without."""
    checkpoint = tiny("mixtral", dtype="float32")
    out = launched(checkpoint, 2, tmp_path, cases=MIXED)
    for case in MIXED:
        found = torch.load(out / f"{case}.pt")
        compare(found, alone(checkpoint, case.split()[1], 2), exact=False)
        assert any("experts" in name for name in found["gradients"]) == case.endswith("+experts")
        assert found["experts"] == ("fsdp2" in case)
        assert len({*found["adapters"]}) == 1


@pytest.mark.slow
def test_four_ranks_of_tensor_parallelism(tiny, tmp_path: Path, one_thread) -> None:
    """transformers splits heads, so there must be four key-value heads."""
    checkpoint = tiny("mistral", dtype="float32", num_key_value_heads=4)
    out = launched(checkpoint, 4, tmp_path, cases=["tp full", "tp lora"])
    for profile in ("full", "lora"):
        compare(torch.load(out / f"tp {profile}.pt"), alone(checkpoint, profile, 1, "lora_"), exact=False)


@pytest.mark.slow
def test_under_accelerate_launch(checkpoint: Path, tmp_path: Path, one_thread) -> None:
    """On CPUs accelerate 1.15 prepares DDP, whatever its launcher's configuration says of FSDP."""
    done = launch(
        "engines:accelerated", 2, tmp_path, checkpoint, launcher="accelerate", ACCELERATE_USE_CPU="true"
    )
    assert done.code == 0, done.output
    found = torch.load(tmp_path / "accelerate lora.pt")
    assert found["wrapped"] == "DistributedDataParallel"
    compare(found, alone(checkpoint, "lora", 2), exact=True)


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("deepspeed"), reason="deepspeed isn't installed")
@pytest.mark.parametrize("profile", ["full", "lora"])
def test_zero3_computes_what_one_process_does(
    profile: str, checkpoint: Path, tmp_path: Path, one_thread
) -> None:
    out = launched(checkpoint, 2, tmp_path, cases=[f"zero3 {profile}"], DS_ACCELERATOR="cpu")
    found = torch.load(out / f"zero3 {profile}.pt")
    compare(found, alone(checkpoint, profile, 2), exact=False)
    assert found["split"] > 0
