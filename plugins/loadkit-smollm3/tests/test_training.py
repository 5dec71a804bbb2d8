"""Training over four bits, with the family's adapter."""

from __future__ import annotations

import pytest
import torch

import loadkit
from loadkit_smollm3.modeling import SmolLM3ForCausalLM

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture
def loaded(make, manager):
    return loadkit.load(make(), "qlora", plugin_manager=manager, smollm3_implementation="plugin")


def test_qlora_trains_and_is_what_was_planned(loaded) -> None:
    plan, measured = loaded.plan, loaded.report.measurements
    assert type(loaded.model.get_base_model()) is SmolLM3ForCausalLM
    assert loaded.report.findings == ()
    assert measured.modules["Linear4bit"] == 4 * len(TARGETS)
    assert plan.memory is not None
    assert abs(plan.memory.model - measured.footprint) <= 0.01 * measured.footprint
    assert plan.memory.unquantized == measured.unquantized
    model = loaded.model.train()
    assert all(layer.gradient_checkpointing for layer in model.get_base_model().model.layers)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert plan.memory.gradients == sum(p.numel() * p.element_size() for p in trained)
    optimizer = torch.optim.AdamW(trained, lr=5e-3)
    ids = torch.randint(8, 500, (2, 16), generator=torch.Generator().manual_seed(0))
    losses = []
    for _ in range(6):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0], losses


def test_the_adapter_is_on_the_registered_layers(loaded) -> None:
    assert loaded.plan.adapter is not None
    assert loaded.plan.adapter.options["target_modules"] == TARGETS
    adapted = {name.split(".")[-4] for name, _ in loaded.model.named_parameters() if "lora_A" in name}
    assert adapted == set(TARGETS)


@pytest.mark.parametrize("profile", ["full", "lora", "inference-4bit", "inference-8bit"])
def test_memory_under_the_other_profiles(make, manager, profile: str) -> None:
    loaded = loadkit.load(make(), profile, plugin_manager=manager, smollm3_implementation="plugin")
    memory, footprint = loaded.plan.memory, loaded.report.measurements.footprint
    assert loaded.report.findings == ()
    assert memory is not None
    assert abs(memory.model - footprint) <= 0.01 * footprint
