"""Every profile on tiny real checkpoints of real architectures: logits equal plain transformers', and
gradients flow."""

from __future__ import annotations

import pytest
import torch
from model_outputs import batch, logits, plain

import loadkit

ARCHITECTURES = (
    "mistral",
    "llama",
    "qwen2",
    "qwen2-tied",
    "smollm3",
    "gemma3",
    "llava",
    "t5",
    "mixtral",
    "gpt2",
    "bert-sequence-classification",
    "qwen2-sequence-classification",
    "remote-code",
    "sharded",
)
TRAINING = ("full", "lora", "qlora", "qlora-8bit")
INFERENCE = ("inference", "inference-4bit", "inference-8bit")
ROUNDED_OTHERWISE = {
    "t5": "its norm rounds to the dtype of its weight, which k-bit preparation keeps in float32"
}
PROFILES = (*TRAINING, *INFERENCE)


def load(tiny, arch: str, profile: str, **options):
    folder = tiny("llama", shards=3) if arch == "sharded" else tiny(arch)
    if arch == "remote-code":
        options["trust_remote_code"] = True
    return loadkit.load(folder, profile, **options)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_logits_equal_plain_transformers(tiny, arch: str, profile: str) -> None:
    loaded = load(tiny, arch, profile)
    inputs = batch(loaded)
    ours, theirs = logits(loaded.model, inputs), logits(plain(loaded.plan), inputs)
    assert torch.isfinite(ours.float()).all()
    if loaded.plan.preparation.kbit and arch in ROUNDED_OTHERWISE:
        torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.1)
    else:
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("profile", TRAINING)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_gradients_reach_exactly_what_trains(tiny, arch: str, profile: str) -> None:
    loaded = load(tiny, arch, profile)
    assert loaded.model.training
    loaded.model(**batch(loaded)).loss.backward()
    for name, parameter in loaded.model.named_parameters():
        if not parameter.requires_grad:
            assert parameter.grad is None, name
        else:
            assert profile == "full" or "lora_" in name or "score" in name or "classifier" in name, name
    reached = [
        n for n, p in loaded.model.named_parameters() if p.grad is not None and bool(p.grad.abs().sum() > 0)
    ]
    assert reached


@pytest.mark.parametrize("profile", INFERENCE)
def test_inference_generates_with_a_cache(tiny, profile: str) -> None:
    model, tokenizer = loadkit.load(tiny("mistral"), profile)
    inputs = tokenizer("The oven is hot", return_tensors="pt", return_token_type_ids=False)
    assert model.config.use_cache is True
    assert not model.training
    assert model.generate(**inputs, max_new_tokens=4, do_sample=False).shape[1] > inputs["input_ids"].shape[1]
