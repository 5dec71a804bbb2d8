"""Supervised fine-tuning with TRL's and transformers' own trainers on what `loadkit.load` returns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from model_outputs import batch, logits
from model_outputs import plain as plain_base
from trainers.data import QUIET, Watch, changed, conversations, falls, run, settings, snapshot, trainable
from trl import SFTConfig, SFTTrainer

import loadkit
from loadkit.compat import from_training_arguments

Tiny = Callable[..., Path]
pytestmark = QUIET


def sft(loaded: loadkit.Loaded, args: Any, **more: Any) -> Any:
    return SFTTrainer(
        model=loaded.model,
        processing_class=loaded.processing_class,
        args=args,
        train_dataset=conversations(),
        **more,
    )


def tokens(loaded: loadkit.Loaded) -> dict[str, Any]:
    inputs = batch(loaded)
    inputs.pop("labels")
    return inputs


@pytest.mark.parametrize("profile", ["full", "lora", "qlora", "qlora-8bit"])
def test_sft_trains_what_was_planned_and_nothing_else(tiny: Tiny, tmp_path: Path, profile: str) -> None:
    args = settings(SFTConfig, tmp_path / "out", max_length=128)
    loaded = loadkit.load(tiny("mistral"), profile, **from_training_arguments(args))
    planned, before, watch = trainable(loaded.model), snapshot(loaded.model), Watch()
    assert planned == ({n for n in before if "lora_" in n} if profile != "full" else set(before))
    losses = run(trainer := sft(loaded, args, callbacks=[watch]))
    assert falls(losses), losses
    assert watch.reached == planned
    assert changed(before, loaded.model) == planned
    assert loaded.model.config.use_cache is False

    # Saved by either, it loads again.
    trained = logits(loaded.model, tokens(loaded))
    trainer.save_model(str(tmp_path / "trainer"))
    loaded.save_pretrained(tmp_path / "ours")
    for folder in (tmp_path / "trainer", tmp_path / "ours"):
        again = loadkit.load(folder, profile)
        assert torch.equal(logits(again.model, tokens(loaded)), trained)
        if profile == "full":
            other = transformers.AutoModelForCausalLM.from_pretrained(folder)
            assert torch.equal(logits(other, tokens(loaded)), trained)
            assert other.config.use_cache is True
            continue
        # Without training there is no k-bit preparation, so plain transformers and PEFT compute the very
        # same.
        options = {
            "qlora": {"load_in_4bit": True, "bnb_4bit_use_double_quant": True},
            "qlora-8bit": {"load_in_8bit": True},
        }
        to_run = loadkit.load(folder, **options.get(profile, {}))
        other = peft.PeftModel.from_pretrained(plain_base(to_run.plan), folder, autocast_adapter_dtype=False)
        for parameter in other.parameters():
            if (
                parameter.dtype == torch.float32
            ):  # over 8-bit weights PEFT keeps what a bfloat16 file holds in float32
                parameter.data = parameter.data.to(torch.bfloat16)
        assert torch.equal(logits(to_run.model, tokens(loaded)), logits(other, tokens(loaded)))


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("profile", ["lora", "qlora"])
def test_gradients_reach_the_adapter_through_recomputed_layers(
    tiny: Tiny, tmp_path: Path, profile: str, use_reentrant: bool
) -> None:
    """TRAPS 12: reentrant checkpointing over a frozen base hands no gradient on, unless the embeddings let
    one flow."""
    args = settings(
        SFTConfig, tmp_path, max_length=128, max_steps=2, gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": use_reentrant},
    )  # fmt: skip
    loaded = loadkit.load(tiny("mistral"), profile, **from_training_arguments(args))
    assert loaded.plan.preparation.gradient_checkpointing_kwargs == {"use_reentrant": use_reentrant}
    watch = Watch()
    run(sft(loaded, args, callbacks=[watch]))
    assert watch.reached == trainable(loaded.model)


def test_the_trainer_injects_the_adapter(tiny: Tiny, tmp_path: Path) -> None:
    args = settings(SFTConfig, tmp_path / "out", max_length=128)
    loaded = loadkit.load(tiny("mistral"), "qlora", adapter=False, **from_training_arguments(args))
    assert trainable(loaded.model) == set()
    lora = peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    before = snapshot(loaded.model)
    trainer = sft(loaded, args, peft_config=lora)
    assert falls(run(trainer))
    after = snapshot(trainer.model.get_base_model())
    kept = {n.replace(".base_layer", ""): t for n, t in after.items() if "lora_" not in n}
    assert kept.keys() == before.keys()
    assert all(torch.equal(kept[n], before[n]) for n in before)
    trainer.save_model(str(tmp_path / "saved"))
    again = loadkit.load(tmp_path / "saved", "qlora")
    assert torch.equal(logits(again.model, tokens(loaded)), logits(trainer.model, tokens(loaded)))


def test_transformers_own_trainer(tiny: Tiny, tmp_path: Path) -> None:
    args = settings(transformers.TrainingArguments, tmp_path)
    loaded = loadkit.load(tiny("mistral"), "lora", **from_training_arguments(args))
    tokenizer = loaded.tokenizer
    texts = [tokenizer.apply_chat_template(c["messages"], tokenize=False) for c in conversations()]
    rows = [{"input_ids": tokenizer(t)["input_ids"] + [tokenizer.eos_token_id]} for t in texts]
    trainer = transformers.Trainer(
        model=loaded.model,
        args=args,
        train_dataset=rows,
        data_collator=transformers.DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )
    batch = trainer.data_collator([rows[0], rows[1]])
    assert (
        (batch["input_ids"] == tokenizer.eos_token_id) <= (batch["labels"] == tokenizer.eos_token_id)
    ).all()
    before = snapshot(loaded.model)
    assert falls(run(trainer))
    assert changed(before, loaded.model) == trainable(loaded.model)


def test_an_evaluation_in_between_does_no_harm(tiny: Tiny, tmp_path: Path) -> None:
    """bitsandbytes repacks 4-bit weights in evaluation mode on some CPUs, and trains wrongly over them
    afterwards."""
    losses = {}
    for evaluated in (False, True):
        torch.manual_seed(0)
        more = {"eval_strategy": "steps", "eval_steps": 1} if evaluated else {}
        args = settings(SFTConfig, tmp_path, max_length=128, max_steps=4, **more)
        loaded = loadkit.load(tiny("mistral"), "qlora", lora_dropout=0.0, **from_training_arguments(args))
        trainer = sft(loaded, args, **({"eval_dataset": conversations(4)} if evaluated else {}))
        original, seen = trainer.training_step, []

        def step(*given: Any, _original: Any = original, _seen: list[float] = seen, **named: Any) -> Any:
            loss = _original(*given, **named)
            _seen.append(float(loss))
            return loss

        trainer.training_step = step
        trainer.train()
        losses[evaluated] = seen
    assert losses[True] == losses[False]
