"""Ready to train and back: what was upcast, the cache at every depth, inference mode, the reference model."""

from __future__ import annotations

import copy
import gc
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from model_outputs import batch, logits

import loadkit
from loadkit.testing.checkpoints import make_adapter

Tiny = Callable[..., Path]


def trained(model: Any, inputs: dict[str, Any], steps: int = 2) -> None:
    """A few optimizer steps on everything that trains."""
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(steps):
        model(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def test_only_norms_are_upcast_and_the_report_says_so_with_bytes(tiny: Tiny) -> None:
    """TRAPS 11: PEFT's own preparation casts every other parameter to float32, embeddings and head
    included."""
    loaded = loadkit.load(tiny("mistral"), "qlora")
    base = loaded.model.get_base_model()
    upcast = {n for n, p in base.named_parameters() if p.dtype == torch.float32}
    assert upcast == {
        n for n, _ in base.named_parameters() if re.search(r"norm\.weight$|layernorm\.weight$", n)
    }
    assert base.lm_head.weight.dtype == base.get_input_embeddings().weight.dtype == torch.bfloat16
    change = next(c for c in loaded.report.changes if c.phase == "k-bit preparation")
    held = sum(p.numel() for n, p in base.named_parameters() if n in upcast)
    assert (change.kind, change.what, change.tensors) == ("cast", "bfloat16 → float32", len(upcast))
    assert (change.bytes_before, change.bytes_after) == (2 * held, 4 * held)
    assert "k-bit preparation: cast 5 tensors, bfloat16 → float32, 640 B → 1.2 KiB" in str(loaded.report)


def test_the_report_tells_what_an_adapter_adds(tiny: Tiny) -> None:
    loaded = loadkit.load(tiny("mistral"), "lora")
    [change] = loaded.report.changes
    added = [p for n, p in loaded.model.named_parameters() if "lora_" in n]
    assert (change.phase, change.kind, change.tensors) == ("adapter", "added", len(added))
    assert change.bytes_after == sum(p.numel() * p.element_size() for p in added)


def test_the_order_of_the_phases_is_the_cores(tiny: Tiny) -> None:
    """TRAPS 12: in another order, the loss has no gradient, or the adapter is frozen with the base."""
    seen: list[str] = []

    class Watching:
        """A plugin that is asked first in every phase, and leaves it to the others."""

    names = ("fit_vocabulary", "prepare_quantized", "checkpoint_activations", "enable_input_gradients",
             "attach_adapters", "merge_adapters")  # fmt: skip
    for name in names:

        def phase(self: object, plan: object, _name: str = name) -> None:
            seen.append(_name)

        setattr(Watching, f"loadkit_{name}", loadkit.hookimpl(phase, specname=f"loadkit_{name}"))
    manager = loadkit.PluginManager(environ={})
    manager.register(Watching(), "watching")
    for use_reentrant in (False, True):
        seen.clear()
        loaded = loadkit.load(
            tiny("mistral"), "qlora", plugin_manager=manager,
            gradient_checkpointing_kwargs={"use_reentrant": use_reentrant},
        )  # fmt: skip
        assert seen == list(names[:5])
        loaded.model(**batch(loaded)).loss.backward()
        gradients = {n: p.grad for n, p in loaded.model.named_parameters() if p.requires_grad}
        assert gradients
        assert all(g is not None for g in gradients.values())
        assert all(bool(g.any()) for n, g in gradients.items() if "lora_B" in n)


def test_gradients_flow_from_the_embeddings_of_a_frozen_base(tiny: Tiny) -> None:
    """TRAPS 12: reentrant checkpointing hands no gradient on where nothing before it has one; not every
    injector sees to it."""
    loaded = loadkit.load(
        tiny("mistral"), "qlora", adapter=False, gradient_checkpointing_kwargs={"use_reentrant": True}
    )
    peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["q_proj"]), loaded.model)
    loaded.model(**batch(loaded)).loss.backward()
    reached = {n for n, p in loaded.model.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert reached == {n for n, _ in loaded.model.named_parameters() if "lora_B" in n}


def test_a_phase_without_a_taker_is_an_error(tiny: Tiny) -> None:
    manager = loadkit.PluginManager(environ={"LOADKIT_DISABLE": "vocabulary"})
    with pytest.raises(loadkit.LoadError, match="no plugin carried out vocabulary: loadkit_fit_vocabulary"):
        loadkit.load(tiny("mistral"), plugin_manager=manager)


@pytest.mark.parametrize("arch", ["mistral", "gemma3", "t5"])
def test_what_is_saved_has_the_checkpoints_own_cache_setting(tiny: Tiny, tmp_path: Path, arch: str) -> None:
    """TRAPS 1: off at every depth while training; a checkpoint saved so would generate without a cache for
    ever."""
    own = json.loads((tiny(arch) / "config.json").read_text())
    loaded = loadkit.load(tiny(arch), "full")
    config = loaded.model.config
    assert config.get_text_config().use_cache is False
    loaded.save_pretrained(tmp_path / "ours")
    loaded.model.save_pretrained(tmp_path / "trainers")  # what a trainer calls
    copy.deepcopy(loaded.model).save_pretrained(tmp_path / "copys")
    for folder in ("ours", "trainers", "copys"):
        saved = json.loads((tmp_path / folder / "config.json").read_text())
        for part in ("text_config",) if arch == "gemma3" else ():
            assert saved[part].get("use_cache", True) == own[part].get("use_cache", True)
        assert saved.get("use_cache", True) == own.get("use_cache", True)
    assert config.get_text_config().use_cache is False  # and training goes on


@pytest.mark.parametrize(("arch", "profile"), [("mistral", "qlora"), ("gemma3", "lora"), ("t5", "full")])
def test_for_inference_and_back(tiny: Tiny, arch: str, profile: str) -> None:
    loaded = loadkit.load(tiny(arch), profile)
    model, text = loaded.model, loaded.model.config.get_text_config()
    some = next(m for m in model.modules() if not list(m.children()))
    some.eval()  # a module that its owner keeps in evaluation mode stays there
    before = [m.training for m in model.modules()]
    inputs = batch(loaded)
    inputs.pop("labels")
    with loaded.for_inference():
        assert not any(m.training for m in model.modules())
        assert text.use_cache is True
        assert (
            model(
                **inputs, **({"decoder_input_ids": inputs["input_ids"]} if arch == "t5" else {})
            ).past_key_values
            is not None
        )
    assert [m.training for m in model.modules()] == before
    assert text.use_cache is False
    mode = loaded.for_inference()
    assert not model.training
    mode.undo()
    mode.undo()
    assert [m.training for m in model.modules()] == before


def test_inference_mode_generates_as_the_plain_model_does(tiny: Tiny) -> None:
    loaded = loadkit.load(tiny("mistral"), "full", dtype="float32")
    plain = transformers.AutoModelForCausalLM.from_pretrained(tiny("mistral"), dtype="float32")
    inputs = loaded.tokenizer("The oven", return_tensors="pt", return_token_type_ids=False)
    with loaded.for_inference():
        ours = loaded.model.generate(**inputs, max_new_tokens=8, do_sample=False)
    assert torch.equal(ours, plain.generate(**inputs, max_new_tokens=8, do_sample=False))


def test_an_evaluation_between_training_steps_leaves_the_gradients_right(tiny: Tiny) -> None:
    """bitsandbytes repacks 4-bit weights in evaluation mode on some CPUs, and can't train over them
    afterwards."""
    gradients = []
    for evaluate in (False, True):
        torch.manual_seed(0)
        loaded = loadkit.load(tiny("mistral"), "qlora", lora_dropout=0.0)
        inputs = batch(loaded)
        if evaluate:
            with loaded.for_inference(), torch.no_grad():
                loaded.model(**inputs)
        loaded.model(**inputs).loss.backward()
        gradients.append([p.grad for p in loaded.model.parameters() if p.requires_grad])
    for without, after in zip(*gradients, strict=True):
        assert torch.equal(without, after)


# --- The reference


@pytest.mark.parametrize("profile", ["lora", "qlora"])
def test_the_reference_of_an_adapter_is_the_base(tiny: Tiny, profile: str) -> None:
    """TRAPS 25: preference training elsewhere loads the model again."""
    loaded = loadkit.load(tiny("mistral"), profile)
    inputs = batch(loaded)
    before = logits(loaded.model, inputs)
    tensors = {p.data_ptr() for p in loaded.model.parameters()}
    reference = loaded.reference()
    own = {id(p) for p in loaded.model.parameters()}
    assert all(id(p) in own for p in reference.parameters())  # none of its own: the policy's very tensors
    assert not any(p.requires_grad for p in reference.parameters())
    trained(loaded.model, inputs)
    assert {p.data_ptr() for p in loaded.model.parameters()} == tensors
    after = logits(loaded.model, inputs)
    assert not torch.equal(after, before)
    assert torch.equal(logits(reference, inputs), before)
    assert torch.equal(logits(loaded.model, inputs), after)  # the policy is as it was
    assert loaded.model.training
    out = reference(**inputs).logits
    assert not out.requires_grad
    reference.train()
    assert torch.equal(
        reference(**inputs).logits, out
    )  # a reference has no dropout, whatever mode it is put in
    assert loaded.reference()(**inputs).logits.equal(out)  # also when asked for late
    assert reference.generate(input_ids=inputs["input_ids"][:1, :4], max_new_tokens=2).shape[1] == 6


def test_the_reference_of_an_existing_adapter_is_that_adapter(tiny: Tiny, tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "sft", tiny("mistral"))
    loaded = loadkit.load(adapter, training=True, gradient_checkpointing=True)
    inputs = batch(loaded)
    with torch.no_grad():
        for name, parameter in loaded.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    saved = loaded.save_pretrained(tmp_path / "sft2")
    loaded = loadkit.load(saved, training=True)
    before = logits(loaded.model, inputs)
    trains = {n for n, p in loaded.model.named_parameters() if p.requires_grad}
    reference = loaded.reference()
    assert {n for n, p in loaded.model.named_parameters() if p.requires_grad} == trains
    assert torch.equal(logits(reference, inputs), before)
    trained(loaded.model, inputs)
    assert not torch.equal(logits(loaded.model, inputs), before)
    assert torch.equal(logits(reference, inputs), before)
    assert {n for n, p in loaded.model.named_parameters() if p.requires_grad} == trains
    late = loadkit.load(saved, training=True)
    trained(late.model, inputs)
    with pytest.raises(loadkit.LoadkitError, match="trained since"):
        late.reference()


@pytest.mark.parametrize("init", ["pissa", "olora", "gaussian"])
def test_the_reference_of_an_adapter_that_starts_with_a_part_of_the_base(tiny: Tiny, init: str) -> None:
    """PiSSA moves weights from the base into the adapter: the base alone isn't the model that was loaded."""
    loaded = loadkit.load(tiny("mistral"), "lora", dtype="float32", init_lora_weights=init, lora_dropout=0.0)
    inputs = batch(loaded)
    before = logits(loaded.model, inputs)
    plain = transformers.AutoModelForCausalLM.from_pretrained(tiny("mistral"), dtype="float32")
    torch.testing.assert_close(
        before, logits(plain, inputs), atol=1e-4, rtol=0
    )  # a sum of two parts, in another order
    reference = loaded.reference()
    trained(loaded.model, inputs)
    assert not torch.equal(logits(loaded.model, inputs), before)
    assert torch.equal(logits(reference, inputs), before)


def test_the_reference_of_a_policy_trained_in_full_is_a_copy(tiny: Tiny) -> None:
    loaded = loadkit.load(tiny("mistral"), "full")
    inputs = batch(loaded)
    reference = loaded.reference()
    before = logits(loaded.model, inputs)
    trained(loaded.model, inputs)
    assert torch.equal(logits(reference, inputs), before)
    assert not any(p.requires_grad for p in reference.parameters())


def scales(model: Any) -> set[int]:
    """Where the constants of 4-bit layers lie that the modules hold beside their weights."""
    states = [state for m in model.modules() if (state := getattr(m, "quant_state", None)) is not None]
    return {tensor.data_ptr() for state in states for tensor in (state.absmax, state.code)}


@pytest.mark.parametrize("profile", ["full", "qlora", "qlora-8bit"])
def test_a_bare_model_shares_its_storage_until_it_trains(tiny: Tiny, profile: str) -> None:
    """The trainer injects the adapter itself: the base stays as it is, and one copy is enough."""
    options = {} if profile == "full" else {"adapter": False}
    loaded = loadkit.load(tiny("mistral"), profile, **options)
    inputs = batch(loaded)
    reference = loaded.reference(trained_in_full=False)
    before = logits(reference, inputs)
    held = {p.data_ptr() for p in loaded.model.parameters()}
    assert {p.data_ptr() for p in reference.parameters()} == held
    assert scales(reference) == scales(loaded.model)
    policy = peft.get_peft_model(
        loaded.model, peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    )
    assert not torch.equal(logits(policy, inputs), before)
    assert torch.equal(logits(reference, inputs), before)


def test_a_shared_reference_refuses_once_the_policy_has_trained(tiny: Tiny) -> None:
    loaded = loadkit.load(tiny("mistral"), "full")
    inputs = batch(loaded)
    reference = loaded.reference(trained_in_full=False)
    logits(reference, inputs)
    trained(loaded.model, inputs, steps=1)
    with pytest.raises(loadkit.LoadkitError, match="trained_in_full=True"):
        reference(**inputs)
    behind = loadkit.load(tiny("mistral"), "full")
    reference = behind.reference(trained_in_full=False)
    for parameter in behind.model.parameters():
        parameter.data.add_(0.5)  # as optimizers that write through pointers do, without torch's knowledge
    with pytest.raises(loadkit.LoadkitError, match="trained_in_full=True"):
        reference(**inputs)


def test_an_adapters_reference_adds_at_most_a_hundredth_of_the_memory(tiny: Tiny) -> None:
    loaded = loadkit.load(tiny("mistral"), "qlora")
    gc.collect()
    before = {
        id(o): o.numel() * o.element_size() for o in gc.get_objects() if issubclass(type(o), torch.Tensor)
    }
    reference = loaded.reference()
    reference(**batch(loaded))
    gc.collect()
    after = {
        id(o): o.numel() * o.element_size() for o in gc.get_objects() if issubclass(type(o), torch.Tensor)
    }
    more = sum(n for key, n in after.items() if key not in before)
    assert more <= 0.01 * loaded.report.measurements.footprint
