"""Supervised fine-tuning of vision-language models on images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from model_outputs import images_and_text, logits
from PIL import Image
from trainers.data import QUIET, Watch, changed, falls, run, settings, snapshot, trainable
from trl import SFTConfig, SFTTrainer

import loadkit
from loadkit.compat import from_training_arguments

Tiny = Callable[..., Path]
pytestmark = QUIET
COLOURS = {"red": (200, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 200)}


def pictures(count: int = 12) -> Dataset:
    """Pictures of one colour, and its name."""
    names = [list(COLOURS)[i % 3] for i in range(count)]
    return Dataset.from_list(
        [
            {
                "images": [Image.new("RGB", (64, 64), COLOURS[name])],
                "messages": [
                    {"role": "user", "content": "What colour is it?"},
                    {"role": "assistant", "content": f"It is {name}."},
                ],
            }
            for name in names
        ]
    )


@pytest.mark.parametrize(("arch", "profile"), [("gemma3", "lora"), ("gemma3", "qlora"), ("llava", "lora")])
def test_sft_with_images(tiny: Tiny, tmp_path: Path, arch: str, profile: str) -> None:
    args = settings(SFTConfig, tmp_path / "out", max_length=None, max_steps=8, per_device_train_batch_size=2)
    loaded = loadkit.load(tiny(arch), profile, **from_training_arguments(args))
    assert loaded.plan.processing.kind == "processor"
    before, planned, watch = snapshot(loaded.model), trainable(loaded.model), Watch()
    assert planned
    assert not any("vision" in name for name in planned)
    trainer = SFTTrainer(
        model=loaded.model, processing_class=loaded.processing_class, args=args, train_dataset=pictures(), callbacks=[watch]
    )  # fmt: skip
    losses = run(trainer)
    assert falls(losses), losses
    assert watch.reached == planned
    assert changed(before, loaded.model) == planned
    saved = loaded.save_pretrained(tmp_path / "saved")
    again = loadkit.load(saved, profile)
    inputs = images_and_text(loaded.processing_class)
    inputs.pop("labels")
    assert torch.equal(logits(again.model, inputs), logits(loaded.model, inputs))
