"""The reference is the model as loaded: for adapters of every kind, under any optimizer, or refused."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from model_outputs import batch, logits

import loadkit

Tiny = Callable[..., Path]

TO = {"target_modules": ["q_proj", "v_proj"]}
TEXT = {"task_type": "CAUSAL_LM"}
PROMPT = {"num_virtual_tokens": 4, **TEXT}

NOTHING_ADDED: dict[str, Any] = {
    "lora": lambda: peft.LoraConfig(**TO),
    "whole modules": lambda: peft.LoraConfig(modules_to_save=["lm_head"], **TO),
    "rows of tokens": lambda: peft.LoraConfig(trainable_token_indices=[5, 6, 7], **TO),
    "embeddings": lambda: peft.LoraConfig(target_modules=["q_proj", "lm_head"]),
}
"""Fresh LoRAs that change nothing: the reference is there at any time, and takes no memory."""

COPIED: dict[str, Any] = {
    "rslora": lambda: peft.LoraConfig(use_rslora=True, init_lora_weights=False, **TO),
    "dora": lambda: peft.LoraConfig(use_dora=True, **TO),
    "biases": lambda: peft.LoraConfig(bias="all", lora_bias=False, **TO),
    "lora's biases": lambda: peft.LoraConfig(bias="lora_only", lora_bias=True, **TO),
    "pissa": lambda: peft.LoraConfig(init_lora_weights="pissa", **TO),
    "of the embeddings": lambda: peft.LoraConfig(target_modules=["embed_tokens"]),
    "adalora": lambda: peft.AdaLoraConfig(total_step=10, tinit=1, tfinal=1, **TO),
    "loha": lambda: peft.LoHaConfig(init_weights=False, **TO),
    "lokr": lambda: peft.LoKrConfig(init_weights=False, **TO),
    "oft": lambda: peft.OFTConfig(init_weights=False, **TO),
    "boft": lambda: peft.BOFTConfig(init_weights=False, boft_block_size=4, **TO),
    "ia3": lambda: peft.IA3Config(
        target_modules=["k_proj", "v_proj"], feedforward_modules=[], init_ia3_weights=False
    ),
    "hra": lambda: peft.HRAConfig(init_weights=False, **TO),
    "fourierft": lambda: peft.FourierFTConfig(n_frequency=20, **TO),
    "vera": lambda: peft.VeraConfig(r=4, target_modules=["q_proj"]),
    "vblora": lambda: peft.VBLoRAConfig(num_vectors=8, vector_length=8, **TO),
    "randlora": lambda: peft.RandLoraConfig(r=4, **TO),
    "norms": lambda: peft.LNTuningConfig(target_modules=["input_layernorm"]),
    "road": lambda: peft.RoadConfig(group_size=8, **TO),
    "c3a": lambda: peft.C3AConfig(block_size=8, **TO),
    "miss": lambda: peft.MissConfig(r=4, **TO),
    "prompt": lambda: peft.PromptTuningConfig(**PROMPT),
    "p-tuning": lambda: peft.PromptEncoderConfig(encoder_hidden_size=16, **PROMPT),
    "prefix": lambda: peft.PrefixTuningConfig(**PROMPT),
}
"""Adapters that change something from the beginning, or whose disabled form isn't the model as loaded."""

DEFAULT = {"whole modules", "dora", "biases", "ia3", "prompt"}
FOUR_BITS = {*NOTHING_ADDED, "rslora", "dora", "oft", "fourierft", "vera", "prompt", "prefix", "norms"}
"""Those that work over 4-bit layers with PEFT 0.21."""


def cases() -> list[Any]:
    return [
        pytest.param(kind, base, id=f"{kind}, {base}", marks=[] if base == "float32" and kind in DEFAULT else pytest.mark.slow)
        for kind in (*NOTHING_ADDED, *COPIED)
        for base in ("float32", "bfloat16", "4-bit")
        if base != "4-bit" or kind in FOUR_BITS
    ]  # fmt: skip


def train(model: Any, inputs: dict[str, Any], *, fused: bool = True) -> None:
    """Three steps; fused ones don't raise torch's count of changes."""
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-2, fused=fused)
    for _ in range(3):
        model(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def own_bytes(reference: Any, policy: Any) -> int:
    """Bytes of the reference's storages that the policy hasn't."""
    held = {t.untyped_storage().data_ptr() for t in (*policy.parameters(), *policy.buffers())}
    mine = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for t in (*reference.parameters(), *reference.buffers())
    }
    return sum(size for at, size in mine.items() if at not in held)


# What PEFT says of layers that it adapts all the same.
@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed")
@pytest.mark.filterwarnings("ignore:Failed to load the CUDA extension")
@pytest.mark.filterwarnings("ignore:Setting boft_n_butterfly_factor")
@pytest.mark.filterwarnings("ignore:Unsupported layer type")
@pytest.mark.parametrize(("kind", "base"), cases())
def test_the_reference_of_an_adapter_is_what_was_loaded(tiny: Tiny, kind: str, base: str) -> None:
    config = {**NOTHING_ADDED, **COPIED}[kind]()
    options: dict[str, Any] = {"load_in_4bit": True} if base == "4-bit" else {"dtype": base}
    loaded = loadkit.load(
        tiny("mistral"), peft_config=config, training=True, gradient_checkpointing=False, **options
    )
    inputs = batch(loaded)
    before = logits(loaded.model, inputs)
    trains = [p for p in loaded.model.parameters() if p.requires_grad]
    reference = loaded.reference()
    assert torch.equal(reference(**inputs).logits, before)
    train(loaded.model, inputs)
    after = logits(loaded.model, inputs)
    assert not torch.equal(after, before)
    assert torch.equal(reference(**inputs).logits, before)
    assert not any(p.requires_grad for p in reference.parameters())
    assert all(p.requires_grad for p in trains)
    assert torch.equal(logits(loaded.model, inputs), after)
    if kind in NOTHING_ADDED:
        assert own_bytes(reference, loaded.model) == 0
        assert torch.equal(loaded.reference()(**inputs).logits, before)
    else:
        assert own_bytes(reference, loaded.model) <= sum(p.numel() * p.element_size() for p in trains)
        with pytest.raises(loadkit.LoadkitError, match=r"trained since.*call reference\(\) before training"):
            loaded.reference()


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("profile", ["full", "lora", pytest.param("qlora", marks=pytest.mark.slow)])
def test_asked_for_after_training_it_is_what_was_loaded_or_is_refused(
    tiny: Tiny, profile: str, fused: bool
) -> None:
    loaded = loadkit.load(tiny("mistral"), profile)
    inputs = batch(loaded)
    before = logits(loaded.model, inputs)
    train(loaded.model, inputs, fused=fused)
    if profile == "full":
        for in_full in (True, False):
            with pytest.raises(loadkit.LoadkitError, match="trained since"):
                loaded.reference(trained_in_full=in_full)
    else:
        assert torch.equal(loaded.reference()(**inputs).logits, before)


@pytest.mark.parametrize(
    "name", ["model.embed_tokens.weight", "model.norm.weight", "model.layers.1.mlp.down_proj.weight"]
)
def test_one_tensor_that_was_trained_is_enough_to_be_refused(tiny: Tiny, name: str) -> None:
    """Every value of what trains counts, so long as that isn't large."""
    loaded = loadkit.load(tiny("mistral"), "full")
    held = dict(loaded.model.named_parameters())[name].data.view(-1)
    pointer = torch.from_numpy(held.view(torch.int16).numpy())  # behind torch's back, as fused kernels write
    pointer[len(held) // 3 + 1] += 1
    with pytest.raises(loadkit.LoadkitError, match="trained since"):
        loaded.reference()


def test_a_base_that_was_written_to_is_refused(tiny: Tiny) -> None:
    """Somebody unfroze the norms, or merged the adapter: the base alone isn't what was loaded either."""
    loaded = loadkit.load(tiny("mistral"), "lora")
    inputs = batch(loaded)
    reference = loaded.reference()
    with pytest.raises(TypeError):
        reference(input_ids=3)
    assert torch.is_grad_enabled()
    with torch.no_grad():
        dict(loaded.model.named_parameters())["base_model.model.model.norm.weight"].mul_(1.5)
    with pytest.raises(loadkit.LoadkitError, match="trained since"):
        reference(**inputs)
    assert torch.is_grad_enabled()
    with pytest.raises(loadkit.LoadkitError, match="frozen have been written to"):
        loaded.reference()


def test_other_adapters_and_injected_ones_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    loaded = loadkit.load(tiny("mistral"), peft_config=COPIED["rslora"](), training=True)
    loaded.model.add_adapter("other", COPIED["rslora"]())
    loaded.model.set_adapter("other")
    with pytest.raises(loadkit.LoadkitError, match="other adapters are on since"):
        loaded.reference()
    loaded.model.set_adapter("default")
    inputs = batch(loaded)
    assert torch.equal(loaded.reference()(**inputs).logits, logits(loaded.model, inputs))
    bare = loadkit.load(tiny("mistral"), "full")
    peft.get_peft_model(bare.model, peft.LoraConfig(target_modules=["q_proj"]))
    for in_full in (True, False):
        with pytest.raises(loadkit.LoadkitError):
            bare.reference(trained_in_full=in_full)


def test_a_reference_under_an_existing_adapter_and_a_new_one(tiny: Tiny, tmp_path: Path) -> None:
    """A new adapter that adds nothing yet: base and the existing one. One that adds: all three."""
    first = loadkit.load(tiny("mistral"), peft_config=COPIED["rslora"](), training=True, dtype="float32")
    first.save_pretrained(tmp_path / "sft")
    for init in (True, False):
        config = peft.LoraConfig(target_modules=["k_proj"], init_lora_weights=init)
        loaded = loadkit.load(
            tmp_path / "sft", new_adapter=True, peft_config=config, training=True, dtype="float32"
        )
        inputs = batch(loaded)
        before = logits(loaded.model, inputs)
        reference = loaded.reference()
        train(loaded.model, inputs)
        assert not torch.equal(logits(loaded.model, inputs), before)
        torch.testing.assert_close(reference(**inputs).logits, before, atol=0 if not init else 1e-5, rtol=0)
        assert set(loaded.model.peft_config) == {"default", "new"}


def test_what_is_remembered_of_a_model_holds_no_copy_of_it(tiny: Tiny) -> None:
    loaded = loadkit.load(tiny("mistral"), "full")
    gc.collect()
    kept = {t.untyped_storage().data_ptr() for t in loaded.model.parameters()}
    remembered = (*loaded._as_loaded.trains.tensors, *loaded._as_loaded.frozen.tensors)
    assert {t.untyped_storage().data_ptr() for t in remembered} <= kept
