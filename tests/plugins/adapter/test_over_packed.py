"""Adapter types over packed weights: those that can't compute are refused, and all the others do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import loadkit
from loadkit.facts.library.peft_configs import peft_fields, peft_types
from loadkit_plugins.adapter.over_packed import CANT, NEEDS_AUTOCAST

NEEDED: dict[str, dict[str, Any]] = {
    "ADAPTION_PROMPT": {"target_modules": "self_attn", "adapter_len": 4, "adapter_layers": 1}, "TRAINABLE_TOKENS": {"target_modules": ["embed_tokens"], "token_indices": [12]},
    "ADALORA": {"total_step": 10}, "BOFT": {"boft_block_size": 4}, "C3A": {"block_size": 16}, "FOURIERFT": {"n_frequency": 10, "init_weights": True}, "LILY": {"num_B": 2},
    "IA3": {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]}, "LN_TUNING": {"target_modules": ["input_layernorm"]},
    "OFT": {"oft_block_size": 32}, "ROAD": {"group_size": 8}, "SHIRA": {"r": 2}, "VBLORA": {"vector_length": 16, "num_vectors": 8}, "WAVEFT": {"n_frequency": 16},
}  # fmt: skip
"""What the tiny model's widths, or the type itself, want."""

APART = {"ADAMSS", "BEFT", "POLY", "SHADOW", "XLORA"}
"""Types that need a package, other inputs or another adapter; and one whose biases these layers haven't."""

IDS = torch.arange(8)[None] + 10


def loaded(folder: Path, kind: str, bits: int) -> loadkit.Loaded:
    given = {"peft_type": kind, "target_modules": ["q_proj", "v_proj"], **NEEDED.get(kind, {})}
    switch: dict[str, Any] = {"load_in_4bit": bits == 4, "load_in_8bit": bits == 8}
    return loadkit.load(folder, "qlora", gradient_checkpointing=False, peft_config=given, **switch)


def computes(model: Any, *, autocast: bool) -> bool:
    """Whether it gives nearly what the base gives, as a new adapter does, and its weights get gradients."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        try:
            out = model(input_ids=IDS, labels=IDS)
            out.loss.backward()
        except RuntimeError:
            return False
        with torch.no_grad(), model.disable_adapter():
            base = model(input_ids=IDS).logits
    trained = [p for p in model.parameters() if p.requires_grad and p.grad is not None]
    off = (out.logits - base).abs().max() / base.abs().max()
    return bool(off < 0.3) and any(p.grad is not None and bool(p.grad.any()) for p in trained)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    "kind", sorted(t for t in peft_types() if "target_modules" in peft_fields(t) and t not in APART)
)
def test_the_tables_are_what_is(tiny: Any, monkeypatch: pytest.MonkeyPatch, kind: str, bits: int) -> None:
    from loadkit_plugins.adapter import checks

    monkeypatch.setattr(checks, "check_over_packed", lambda *_: ())
    can = bits not in CANT.get(kind, ((), ""))[0]
    try:
        model = loaded(tiny("llama"), kind, bits).model
    except loadkit.LoadError:
        assert not can
        return
    assert computes(model, autocast=True) is can
    if can:
        assert computes(model, autocast=False) is (bits not in NEEDS_AUTOCAST.get(kind, ()))


@pytest.mark.parametrize(("kind", "bits"), [("LOHA", 4), ("HRA", 8), ("UNILORA", 4), ("OSF", 8)])
def test_what_cant_compute_is_refused(tiny: Any, kind: str, bits: int) -> None:
    with pytest.raises(loadkit.PlanError) as refused:
        loaded(tiny("llama"), kind, bits)
    (problem,) = [p for p in refused.value.problems if p.code == "adapter-over-packed"]
    assert "use LoRA" in problem.remedy
    assert ("8 bits" in problem.remedy) == (kind == "LOHA")


def test_layers_that_stay_as_they_are_can_have_any(tiny: Any) -> None:
    given = {"peft_type": "HRA", "target_modules": ["q_proj"]}
    model = loadkit.load(tiny("llama"), "qlora", peft_config=given, skip_modules=["q_proj"]).model
    assert computes(model, autocast=False)


def test_an_existing_adapter_is_refused_too(tiny: Any, tmp_path: Path) -> None:
    given = {"peft_type": "LOHA", "target_modules": ["q_proj"]}
    loadkit.load(tiny("llama"), "lora", peft_config=given).model.save_pretrained(tmp_path)
    loadkit.plan(tmp_path)
    with pytest.raises(loadkit.PlanError, match="adapter-over-packed"):
        loadkit.plan(tmp_path, load_in_4bit=True)


def test_layers_that_mix_dtypes_are_told(tiny: Any) -> None:
    given = {"peft_type": "IA3", "target_modules": ["k_proj"], "feedforward_modules": []}
    plan = loadkit.plan(tiny("llama"), "qlora", peft_config=given)
    assert "adapter-needs-autocast" in {w.code for w in plan.warnings}


@pytest.mark.parametrize("kind", ["ADAPTION_PROMPT", "TRAINABLE_TOKENS"])
@pytest.mark.parametrize("bits", [4, 0])
def test_types_that_wrap_no_layers_pass_the_audit(tiny: Any, tmp_path: Path, kind: str, bits: int) -> None:
    """The one has no name in its parameters' paths, the other is of rows alone; both load again."""
    model = loaded(tiny("llama"), kind, bits).model
    assert computes(model, autocast=False)
    model.save_pretrained(tmp_path)
    again = loadkit.load(tmp_path, load_in_4bit=bool(bits))
    assert again.plan.adapter is not None
    assert again.plan.adapter.peft_type == kind


def test_adaption_prompts_take_the_end_of_a_path(tiny: Any) -> None:
    given = {"peft_type": "ADAPTION_PROMPT", "adapter_len": 4, "adapter_layers": 1}
    for targets, said in ((["self_attn"], "takes the end of a path"), ("self_atn", "nothing in")):
        with pytest.raises(loadkit.PlanError, match=said):
            loadkit.plan(tiny("llama"), "lora", peft_config={**given, "target_modules": targets})
