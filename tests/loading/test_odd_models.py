"""Real architectures with habits that loading must know of; the sweep over all of them is tests/zoo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from zoo.inputs import inputs_of
from zoo.sweeping import make

import loadkit

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers' own models, about themselves


@pytest.fixture
def made(tmp_path: Path) -> Any:
    def make_one(model_type: str) -> Path:
        assert make(model_type, tmp_path / model_type) == ""
        return tmp_path / model_type

    return make_one


def step(loaded: loadkit.Loaded) -> torch.Tensor:
    """One forward and backward pass; the loss."""
    batch = {key: value for key, value in inputs_of(loaded.model.config).items() if value is not None}
    floats = {k: v.to(torch.bfloat16) for k, v in batch.items() if v.is_floating_point()}
    loss = loaded.model(**{**batch, **floats}).loss
    loss.backward()
    assert any(p.grad is not None and bool(p.grad.any()) for p in loaded.model.parameters())
    return loss


@pytest.mark.parametrize("model_type", ["git", "udop"])
def test_embeddings_that_are_changed_in_place(made: Any, model_type: str) -> None:
    """transformers marks them as a leaf of the graph, which autograd lets nobody change."""
    assert torch.isfinite(step(loadkit.load(made(model_type), "lora")))


def test_norms_that_the_model_casts_to_the_dtype_of(made: Any) -> None:
    loaded = loadkit.load(made("blip-2"), "qlora")
    assert loaded.plan.preparation.norms_left == ("qformer.layernorm",)
    assert torch.isfinite(step(loaded))
    dtypes = {name: m.weight.dtype for name, m in loaded.model.named_modules() if "layernorm" in name.lower()}
    assert [d for n, d in dtypes.items() if n.endswith("qformer.layernorm")] == [torch.bfloat16]
    assert set(dtypes.values()) == {torch.bfloat16, torch.float32}


def test_a_norm_of_several_tensors_hands_all_on_in_the_dtype_of_the_weights(made: Any) -> None:
    assert torch.isfinite(step(loadkit.load(made("zaya"), "qlora")))


@pytest.mark.parametrize("model_type", ["zamba", "ernie4_5_moe"])
def test_parameters_that_the_class_itself_keeps_in_float32(made: Any, model_type: str) -> None:
    loaded = loadkit.load(made(model_type))
    kept = [n for n, p in loaded.model.named_parameters() if p.dtype is torch.float32]
    assert kept
    notes = [(f.code, f.severity) for f in loaded.report.findings]
    assert notes == ([("own-dtype", "note")] if model_type == "zamba" else [])  # the other declares a pattern


def test_a_model_that_does_not_tell_its_embeddings(made: Any) -> None:
    assert loadkit.load(made("pp_formulanet"), "inference").report.findings == ()


@pytest.mark.parametrize(
    ("model_type", "profile", "module", "adapted"),
    [
        ("longcat_flash", "qlora", "model.layers.0.mlp.router.classifier", False),  # routers never are
        ("deepseek_v2", "qlora-8bit", "model.layers.0.self_attn.kv_b_proj", True),
        ("llama4_text", "lora", "model.layers.0.feed_forward.router", False),
        ("mamba", "lora", "backbone.layers.0.mixer.out_proj", False),
    ],
)
def test_layers_that_are_left_alone_let_the_model_train(
    made: Any, model_type: str, profile: str, module: str, adapted: bool
) -> None:
    """TRAPS 27, 29."""
    loaded = loadkit.load(made(model_type), profile)
    step(loaded)
    found = loaded.model.get_base_model().get_submodule(module)
    layer = getattr(found, "base_layer", found)
    assert type(layer).__name__ not in ("Linear4bit", "Linear8bitLt")
    assert hasattr(found, "lora_A") == adapted


def test_random_weights_are_told_before_what_follows_from_them(made: Any) -> None:
    """TRAPS 26: shieldgemma2 through its Auto class; PEFT breaks over its language model, which isn't
    there."""
    with pytest.raises(
        loadkit.LoadError, match=r"^\d+ tensors aren't in .*shieldgemma2.* and then: PEFT couldn't attach"
    ):
        loadkit.load(made("shieldgemma2"), "qlora")
    with pytest.raises(loadkit.AuditError, match="hold random values"):
        loadkit.load(made("shieldgemma2"))


def test_a_model_that_computes_over_its_cache_trains_with_it(made: Any) -> None:
    loaded = loadkit.load(made("pi0"), "full")
    assert loaded.plan.use_cache is None
    assert not loaded.plan.preparation.gradient_checkpointing
    step(loaded)
