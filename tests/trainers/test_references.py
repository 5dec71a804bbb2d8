"""loadkit's reference as a trainer's own: it is what was loaded, for adapters of every kind and in full."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from datasets import Dataset
from model_outputs import batch, logits
from trainers.data import QUIET, preferences, run, settings
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

import loadkit
from loadkit.compat import from_training_arguments

Tiny = Callable[..., Path]
pytestmark = QUIET

TASK = {"task_type": "CAUSAL_LM"}
ADAPTERS: dict[str, Any] = {
    "lora": peft.LoraConfig(target_modules=["q_proj", "v_proj"], **TASK),
    "lora that adds": peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False, **TASK),
    "lora of the head": peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"], **TASK),
    "oft": peft.OFTConfig(target_modules=["q_proj"], init_weights=False, **TASK),
    "prompt": peft.PromptTuningConfig(num_virtual_tokens=4, **TASK),
    "prefix": peft.PrefixTuningConfig(num_virtual_tokens=4, **TASK),
}


def judged() -> Dataset:
    """Answers, each with whether it is a good one."""
    rows = [
        {"prompt": row["prompt"], "completion": row[kind], "label": kind == "chosen"}
        for row in preferences(12)
        for kind in ("chosen", "rejected")
    ]
    return Dataset.from_list(rows)


@pytest.mark.parametrize(
    ("kind", "trainer"),
    [
        ("lora", "dpo"),
        ("lora that adds", "kto"),
        ("prompt", "dpo"),
        *(
            pytest.param(kind, trainer, marks=pytest.mark.slow)
            for kind in (*ADAPTERS, "full", "qlora")
            for trainer in ("dpo", "kto", "dpo, precomputed")
            if (kind, trainer) not in {("lora", "dpo"), ("lora that adds", "kto"), ("prompt", "dpo")}
        ),
    ],
)
def test_the_reference_is_a_trainers_ref_model(tiny: Tiny, tmp_path: Path, kind: str, trainer: str) -> None:
    """At the first step policy and reference are one: DPO's loss is log 2, KTO's a half."""
    config, made, data = (
        (KTOConfig, KTOTrainer, judged()) if trainer == "kto" else (DPOConfig, DPOTrainer, preferences())
    )
    more = {"precompute_ref_log_probs": True} if trainer.endswith("precomputed") else {}
    prompted = kind in {"prompt", "prefix"}
    args = settings(
        config, tmp_path / "out", max_length=128, max_steps=4, learning_rate=5e-3, beta=0.5, optim="adamw_torch_fused",
        gradient_checkpointing=not prompted, **more,
    )  # fmt: skip
    options: dict[str, Any] = {"peft_config": ADAPTERS[kind]} if kind in ADAPTERS else {}
    dtype = "bfloat16" if kind == "qlora" else "float32"
    profile = kind if kind in {"full", "qlora"} else "lora"
    given = from_training_arguments(args)
    loaded = loadkit.load(tiny("mistral"), profile, **{**given, **options, "dtype": dtype})
    inputs = batch(loaded)
    before = logits(loaded.model, inputs)
    reference = loaded.reference()
    losses = run(
        made(
            model=loaded.model, ref_model=reference, processing_class=loaded.processing_class, args=args, train_dataset=data,
        )
    )  # fmt: skip
    assert losses[0] == pytest.approx(0.5 if trainer == "kto" else math.log(2), abs=1e-4)
    assert not torch.equal(logits(loaded.model, inputs), before)
    assert torch.equal(reference(**inputs).logits, before)


@pytest.mark.parametrize("profile", ["lora", pytest.param("full", marks=pytest.mark.slow)])
def test_a_reference_asked_for_when_a_trainer_has_the_model(tiny: Tiny, tmp_path: Path, profile: str) -> None:
    """The trainer has put a forward of its own on the policy, bound to it; the reference has its class's."""
    args = settings(DPOConfig, tmp_path / "out", max_length=128, max_steps=2, optim="adamw_torch_fused")
    given = from_training_arguments(args)
    loaded = loadkit.load(tiny("mistral"), profile, **{**given, "dtype": "float32"})
    inputs = batch(loaded)
    before = logits(loaded.model, inputs)
    trainer = DPOTrainer(
        model=loaded.model, processing_class=loaded.processing_class, args=args, train_dataset=preferences()
    )
    reference = loaded.reference()
    run(trainer)
    assert not torch.equal(logits(loaded.model, inputs), before)
    assert torch.equal(reference(**inputs).logits, before)
    if profile == "lora":
        assert torch.equal(loaded.reference()(**inputs).logits, before)
    else:
        with pytest.raises(loadkit.LoadkitError, match="trained since"):
            loaded.reference()
