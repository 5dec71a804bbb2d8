"""On a CUDA device: the same plans on the GPU's own terms. Skipped, in plain sight, where there is none."""

from __future__ import annotations

import pytest
import torch
from model_outputs import batch, logits, plain

import loadkit

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]


def on_gpu(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.to("cuda") for name, tensor in inputs.items()}


@pytest.mark.parametrize(
    "profile", ["full", "lora", "qlora", "qlora-8bit", "inference", "inference-4bit", "inference-8bit"]
)
@pytest.mark.parametrize("arch", ["mistral", "gemma3"])
def test_logits_equal_plain_transformers_on_the_gpu(tiny, arch: str, profile: str) -> None:
    loaded = loadkit.load(tiny(arch), profile)
    assert {p.device.type for p in loaded.model.parameters()} == {"cuda"}
    inputs = on_gpu(batch(loaded))
    assert torch.equal(logits(loaded.model, inputs), logits(plain(loaded.plan), inputs))


@pytest.mark.parametrize("profile", ["lora", "qlora", "qlora-8bit"])
def test_gradients_flow_on_the_gpu(tiny, profile: str) -> None:
    loaded = loadkit.load(tiny("mistral"), profile)
    loaded.model(**on_gpu(batch(loaded))).loss.backward()
    assert any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in loaded.model.parameters())
    assert loaded.report.peak_memory["cuda:0"] > 0
