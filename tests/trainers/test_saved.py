"""What a trainer saves is all that is needed to load the trained model again, as it was."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset
from model_outputs import batch, images_and_text, logits
from trainers.data import QUIET, conversations, preferences, settings
from trainers.test_vision import pictures
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
)

import loadkit
from loadkit.compat import from_training_arguments

Tiny = Callable[..., Path]
pytestmark = [
    *QUIET,
    # What PEFT says when a trainer saves an adapter whose base has got rows for new tokens: they are saved.
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning"),
]

TRAINERS = ("sft", "dpo", "grpo", "reward", "vision", "resumed")
PROFILES = ("full", "lora", "qlora", "qlora-8bit")
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
DEFAULT = {("sft", "lora"), ("reward", "qlora")}


def tokenized(loaded: loadkit.Loaded) -> Dataset:
    text = [row["prompt"] + row["chosen"] for row in preferences(8)]
    rows = [loaded.tokenizer(each)["input_ids"][:16] for each in text]
    return Dataset.from_list(
        [{"input_ids": r + [0] * (16 - len(r)), "labels": r + [-100] * (16 - len(r))} for r in rows]
    )


def pairs() -> Dataset:
    return preferences(8).map(
        lambda row: {"chosen": row["prompt"] + row["chosen"], "rejected": row["prompt"] + row["rejected"]},
        remove_columns=["prompt"],
    )


def trained(kind: str, loaded: loadkit.Loaded, args: Any) -> Any:
    """Train a step or two, and give the trainer."""
    about = {"model": loaded.model, "processing_class": loaded.processing_class, "args": args}
    if kind == "resumed":
        data = tokenized(loaded)
        made = transformers.Trainer(train_dataset=data, **about)
        made.train()
        return made
    if kind == "grpo":
        prompts = conversations(8).map(
            lambda row: {"prompt": row["messages"][:1]}, remove_columns=["messages"]
        )
        made = GRPOTrainer(
            reward_funcs=lambda completions, **_: [float(i) for i in range(len(completions))],
            train_dataset=prompts,
            **about,
        )
    elif kind == "dpo":
        made = DPOTrainer(ref_model=loaded.reference(), train_dataset=preferences(8), **about)
    elif kind == "reward":
        made = RewardTrainer(train_dataset=pairs(), **about)
    else:
        made = SFTTrainer(train_dataset=pictures(4) if kind == "vision" else conversations(8), **about)
    made.train()
    return made


def arguments(kind: str, folder: Path) -> Any:
    config = {
        "dpo": DPOConfig,
        "grpo": GRPOConfig,
        "reward": RewardConfig,
        "resumed": transformers.TrainingArguments,
    }.get(kind, SFTConfig)
    more: dict[str, Any] = (
        {"max_length": None if kind == "vision" else 128} if kind not in {"grpo", "resumed"} else {}
    )
    if kind == "grpo":
        more = {"num_generations": 4, "max_completion_length": 8, "beta": 0.0}
    return settings(
        config, folder, max_steps=2, save_strategy="steps", save_steps=1, learning_rate=5e-3, **more
    )


def recorded(loaded: loadkit.Loaded) -> dict[str, Any]:
    """What a model was loaded with that has to come back by itself."""
    config, tokenizer = loaded.model.config, loaded.tokenizer
    found = {
        "task": loaded.plan.model_class.task,
        "class": loaded.plan.model_class.model_class,
        "template": tokenizer.chat_template,
        "added": tokenizer.get_added_vocab(),
        "pad": tokenizer.pad_token,
        "rows": loaded.model.get_input_embeddings().weight.shape[0],
        "use_cache": config.get_text_config().use_cache,
        "labels": getattr(config, "num_labels", None)
        if "classification" in loaded.plan.model_class.task
        else None,
        "problem_type": getattr(config, "problem_type", None),
    }
    if loaded.plan.adapter is not None:
        found["dtypes"] = sorted({str(p.dtype) for n, p in loaded.model.named_parameters() if "lora_" in n})
        found["base"] = (loaded.plan.checkpoint.location, loaded.plan.checkpoint.commit)
    return found


@pytest.mark.parametrize(
    ("kind", "profile"),
    [
        pytest.param(kind, profile, marks=[] if (kind, profile) in DEFAULT else pytest.mark.slow)
        for kind, profile in itertools.product(TRAINERS, PROFILES)
    ],
)
def test_what_a_trainer_saved_loads_again_as_it_was(
    tiny: Tiny, tmp_path: Path, kind: str, profile: str
) -> None:
    """Its folder and the profile alone: template, added tokens, task and labels, and every weight."""
    args = arguments(kind, tmp_path / "out")
    options: dict[str, Any] = {"task": "sequence-classification", "num_labels": 1} if kind == "reward" else {}
    if kind != "vision":
        options |= {"chat_template": TEMPLATE, "additional_special_tokens": ["<think>", "</think>"]}
    base = tiny("gemma3" if kind == "vision" else "mistral")
    dtype = "bfloat16" if profile.startswith("qlora") else "float32"
    given = {**from_training_arguments(args), "dtype": dtype, **options}
    loaded = loadkit.load(base, profile, **given)
    trainer = trained(kind, loaded, args)
    if kind == "resumed":  # a second process goes on from the first one's checkpoint
        loaded = loadkit.load(base, profile, **given)
        args.max_steps = 3
        data = tokenized(loaded)
        trainer = transformers.Trainer(
            model=loaded.model, processing_class=loaded.processing_class, args=args, train_dataset=data
        )
        trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    inputs = images_and_text(loaded.processing_class) if kind == "vision" else batch(loaded)
    inputs.pop("labels")
    was, before = logits(loaded.model, inputs), recorded(loaded)
    trainer.save_model(str(tmp_path / "trainer"))
    loaded.save_pretrained(tmp_path / "ours")
    last = tmp_path / "out" / f"checkpoint-{args.max_steps}"
    for folder in (tmp_path / "trainer", tmp_path / "ours", last):
        # Going on, transformers loads an adapter in float32 over any base; here it has the base's dtype.
        wide = {"adapter_dtype": "float32"} if (kind, dtype) == ("resumed", "bfloat16") else {}
        again = loadkit.load(folder, profile, dtype=dtype, **wide)
        assert not [str(f) for f in again.report.findings if f.severity == "error" or "score" in f.message], (
            folder
        )
        assert recorded(again) == before, folder
        assert torch.equal(logits(again.model, inputs), was), folder
        to_run = loadkit.load(folder)  # without a profile: to run it
        assert to_run.model.config.get_text_config().use_cache is True
        assert {
            k: v
            for k, v in recorded(to_run).items()
            if k in {"task", "class", "template", "added", "rows", "labels"}
        } == {
            k: v for k, v in before.items() if k in {"task", "class", "template", "added", "rows", "labels"}
        }
