"""Packed experts, and what else is packed beside linear layers: every type computes, learns and generates as
with the unpacked weights."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from zoo.expected import NEEDS, model_types

import loadkit
from loadkit.facts.library.index import read_library
from loadkit_plugins.bitsandbytes.packed import modules

SOME = (
    "aria_text", "dbrx", "falcon", "gpt_oss", "granitemoe", "inkling_text", "jetmoe", "llama4_text", "mixtral", "nemotron_h",
    "qwen3_moe", "recurrent_gemma",
)  # fmt: skip
"""Transposed, flat, subclasses of Linear, with biases, stored as stacks, shared, without gates, by blocks."""

FAILING = {
    "diffusion_gemma": "transformers leaves linear layers that share their weights unquantized, which the plan doesn't know",
    "shieldgemma2": "most of it would be random",
    "xlnet": "fails over dtypes of its own, in plain transformers too",
}
"""Types that don't run whatever is packed."""

ODD = ("axk2", "bailing_hybrid", "deepseek_v4", "inkling2", "inkling2_text", "mistral_large4")
"""Types with layers of widths that bitsandbytes' 4-bit kernel for CPUs fails over in evaluation, under names
that the plan can't tell."""


def packs(model_type: str) -> bool:
    families = read_library({"model_type": model_type}).families.values()
    return any(facts.packable for family in families for facts in family.modules.values())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", SOME)
def test_some_types_are_as_with_the_unpacked_weights(model_type: str, tmp_path: Path) -> None:
    equal(model_type, "inference-4bit", tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("profile", ["qlora", "qlora-8bit", "inference-4bit"])
@pytest.mark.parametrize("model_type", [each for each in model_types() if each not in (*NEEDS, *FAILING)])
def test_every_type_is_as_with_the_unpacked_weights(model_type: str, profile: str, tmp_path: Path) -> None:
    if packs(model_type):
        equal(model_type, profile, tmp_path)


def equal(model_type: str, profile: str, folder: Path) -> None:
    """Hold a loaded type against a copy of itself whose packed parameters hold the unpacked values."""
    from zoo.inputs import inputs_of
    from zoo.sweeping import make

    if made := make(model_type, folder / "checkpoint"):
        pytest.skip(made)
    loaded = loadkit.load(folder / "checkpoint", profile)
    model = loaded.model.get_base_model() if hasattr(loaded.model, "get_base_model") else loaded.model
    if not [*modules.packed(model)]:
        assert model_type not in SOME
        pytest.skip("its config makes nothing to pack")
    plain = copy.deepcopy(model)
    for module in [*plain.modules()]:
        if modules.is_carrier(module):
            modules.uncarry(module)
    batch = {name: value for name, value in inputs_of(model.config).items() if value is not None}
    batch = {name: as_in(model, value) for name, value in batch.items()}
    if "attention_mask" in batch and batch["attention_mask"].ndim == 2:
        batch["attention_mask"][0, :3] = 0  # padded on the left
    same(learned(model, batch), learned(plain, batch))
    if profile == "inference-4bit" and model_type not in ODD:
        generated = [
            each.eval().generate(batch["input_ids"][:1, :1], max_new_tokens=3, do_sample=False)
            for each in ((model, plain) if model.can_generate() and set(batch) == TEXT else ())
        ]  # of one token most experts get none
        assert not generated or torch.equal(*generated)
        return
    for reentrant in (False, True):
        for each in (model, plain) if model.supports_gradient_checkpointing else ():
            each.gradient_checkpointing_enable({"use_reentrant": reentrant})
        same(learned(model, batch), learned(plain, batch))


TEXT = {"input_ids", "attention_mask", "labels"}


def as_in(model: Any, value: Any) -> Any:
    floats = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.to(model.dtype) if floats else value


def learned(model: Any, batch: dict[str, Any]) -> list[torch.Tensor]:
    """The logits or the loss, and the gradients of what stands before all packed parameters."""
    model.train()
    model.zero_grad()
    torch.manual_seed(0)
    embeddings = model.get_input_embeddings().weight.requires_grad_(True)
    output = model(**batch, use_cache=False) if "decoder_input_ids" not in batch else model(**batch)
    loss = output.loss if output.get("loss") is not None else output.logits.float().pow(2).mean()
    loss.backward()
    found = [loss.detach(), *([embeddings.grad.clone()] if embeddings.grad is not None else [])]
    return [*found, output.logits.detach()] if output.get("logits") is not None else found


def same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one.nan_to_num(nan=0.5), other.nan_to_num(nan=0.5))
