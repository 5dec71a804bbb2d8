"""DPO, GRPO and reward modelling with TRL's own trainers."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from model_outputs import batch, logits
from trainers.data import (
    QUIET,
    Watch,
    changed,
    conversations,
    falls,
    preferences,
    run,
    settings,
    snapshot,
    trainable,
)
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, RewardConfig, RewardTrainer

import loadkit
from loadkit.compat import from_training_arguments

Tiny = Callable[..., Path]
pytestmark = QUIET


@pytest.mark.parametrize("profile", ["full", "lora", "qlora"])
def test_dpo(tiny: Tiny, tmp_path: Path, profile: str) -> None:
    """TRAPS 25: one base serves policy and reference. The loss starts at log 2 only where the reference is
    the policy as it was."""
    rate = 5e-4 if profile == "full" else 5e-3
    args = settings(DPOConfig, tmp_path / "out", max_length=128, learning_rate=rate, beta=0.5)
    # Over a quantized base TRL casts what trains to bfloat16, whatever it was.
    dtype = "bfloat16" if profile == "qlora" else "float32"
    loaded = loadkit.load(tiny("mistral"), profile, dtype=dtype, **from_training_arguments(args))
    reference = loaded.reference() if profile == "full" else None
    before, watch = snapshot(loaded.model), Watch()
    kept = snapshot(reference) if reference is not None else {}
    trainer = DPOTrainer(
        model=loaded.model, ref_model=reference, processing_class=loaded.processing_class, args=args,
        train_dataset=preferences(), callbacks=[watch],
    )  # fmt: skip
    losses = run(trainer)
    assert losses[0] == pytest.approx(math.log(2), abs=1e-5)
    assert falls(losses), losses
    planned = {n for n in trainable(loaded.model) if ".ref." not in n}
    assert watch.reached == planned
    assert {n for n in changed(before, loaded.model) if n in before} == planned
    if reference is not None:
        assert changed(kept, reference) == set()
    loaded.save_pretrained(tmp_path / "saved")
    inputs = batch(loaded)
    again = loadkit.load(tmp_path / "saved", profile, dtype=dtype)
    assert torch.equal(logits(again.model, inputs), logits(loaded.model, inputs))


def test_dpo_with_loadkits_reference_of_an_adapter_in_a_loop_of_ones_own(tiny: Tiny) -> None:
    loaded = loadkit.load(tiny("mistral"), "qlora", lora_dropout=0.0)
    reference, optimizer = loaded.reference(), torch.optim.AdamW(
        [p for p in loaded.model.parameters() if p.requires_grad], lr=5e-3
    )  # fmt: skip
    tokenizer = loaded.tokenizer

    def logp(model: Any, text: str) -> torch.Tensor:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        scores = model(input_ids=ids).logits[:, :-1].float().log_softmax(-1)
        return scores.gather(-1, ids[:, 1:, None]).sum()

    losses = []
    for _ in range(6):
        good, bad = "The oven is hot.", "The oven is not, not, not."
        margin = (logp(loaded.model, good) - logp(reference, good)) - (
            logp(loaded.model, bad) - logp(reference, bad)
        )
        loss = -torch.nn.functional.logsigmoid(0.5 * margin)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert falls(losses), losses


def test_grpo(tiny: Tiny, tmp_path: Path) -> None:
    args = settings(
        GRPOConfig, tmp_path / "out", max_steps=3, num_generations=4, max_completion_length=8, beta=0.0,
        per_device_train_batch_size=4, learning_rate=5e-3,
    )  # fmt: skip
    loaded = loadkit.load(tiny("mistral"), "lora", **from_training_arguments(args))

    def variety(completions: list[Any], **_: Any) -> list[float]:
        """Rewards many different characters: real work on what was generated."""
        texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
        return [float(len(set(text))) for text in texts]

    prompts = conversations(8).map(lambda row: {"prompt": row["messages"][:1]}, remove_columns=["messages"])
    before, watch = snapshot(loaded.model), Watch()
    trainer = GRPOTrainer(
        model=loaded.model, reward_funcs=variety, processing_class=loaded.processing_class, args=args,
        train_dataset=prompts, callbacks=[watch],
    )  # fmt: skip
    losses = run(trainer)
    assert len(losses) == 3
    assert watch.reached == trainable(loaded.model)
    assert changed(before, loaded.model) == trainable(loaded.model)
    assert loaded.model.config.use_cache is False


@pytest.mark.parametrize("profile", ["full", "lora"])
def test_a_reward_model(tiny: Tiny, tmp_path: Path, profile: str) -> None:
    args = settings(RewardConfig, tmp_path / "out", max_length=128, learning_rate=2e-3)
    loaded = loadkit.load(
        tiny("mistral"), profile, task="sequence-classification", model_kwargs={"num_labels": 1},
        **from_training_arguments(args),
    )  # fmt: skip
    assert (
        type(loaded.model.get_base_model() if profile == "lora" else loaded.model).__name__
        == "MistralForSequenceClassification"
    )
    data = preferences().map(
        lambda row: {"chosen": row["prompt"] + row["chosen"], "rejected": row["prompt"] + row["rejected"]},
        remove_columns=["prompt"],
    )
    before = snapshot(loaded.model)
    trainer = RewardTrainer(
        model=loaded.model, processing_class=loaded.processing_class, args=args, train_dataset=data
    )
    losses = run(trainer)
    assert falls(losses), losses
    assert changed(before, loaded.model) == trainable(loaded.model)
    assert any("score" in n for n in trainable(loaded.model))  # the new head trains
    loaded.save_pretrained(tmp_path / "saved")
    again = loadkit.load(tmp_path / "saved", task="sequence-classification", model_kwargs={"num_labels": 1})
    inputs = {k: v for k, v in batch(loaded).items() if k != "labels"}
    assert torch.equal(logits(again.model, inputs), logits(loaded.model, inputs))
