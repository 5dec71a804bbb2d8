"""Small real datasets, trainers' settings for a CPU, and what is measured while they train."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset

from loadkit.testing.checkpoints.corpus import CONVERSATIONS

os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

# What the libraries say about each other, and nobody here can help.
QUIET = [
    # trl 1.16 sets gradient_checkpointing, which transformers 5.23 calls activation_checkpointing.
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing.*is deprecated:FutureWarning"),
    # peft 0.21 reads the attribute that transformers 5.23 renamed, when the trainer injects an adapter.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]


def conversations(count: int = 24) -> Dataset:
    """Questions and answers, as messages."""
    pairs = [CONVERSATIONS[i % len(CONVERSATIONS)] for i in range(count)]
    return Dataset.from_list(
        [
            {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
            for q, a in pairs
        ]
    )


def preferences(count: int = 24) -> Dataset:
    """Questions with a good answer and a bad one."""
    pairs = [CONVERSATIONS[i % len(CONVERSATIONS)] for i in range(count)]
    return Dataset.from_list([{"prompt": q, "chosen": f" {a}", "rejected": " No, no, no."} for q, a in pairs])


def settings(kind: type, folder: Path, **more: Any) -> Any:
    """A trainer's config for a few steps on this CPU."""
    given: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": 10,
        "per_device_train_batch_size": 4,
        "learning_rate": 5e-3,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "seed": 0,
        "dataloader_pin_memory": False,
    }
    return kind(**{**given, **more})


class Watch(transformers.TrainerCallback):
    """Notes which parameters a gradient has reached."""

    def __init__(self) -> None:
        self.reached: set[str] = set()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self.reached |= {
            n for n, p in given["model"].named_parameters() if p.grad is not None and bool(p.grad.any())
        }


def snapshot(model: Any) -> dict[str, torch.Tensor]:
    """Every parameter's bytes, packed ones included, and the constants of quantized ones."""
    held = {}
    for name, parameter in model.named_parameters():
        held[name] = parameter.detach().clone()
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            held[f"{name}.absmax"] = state.absmax.clone()
        if getattr(parameter, "SCB", None) is not None:
            held[f"{name}.SCB"] = parameter.SCB.clone()
    return held


def changed(before: Mapping[str, torch.Tensor], model: Any) -> set[str]:
    """The parameters that aren't what they were, to the bit."""
    after = snapshot(model)
    return {
        name for name, tensor in after.items() if name not in before or not torch.equal(tensor, before[name])
    }


def trainable(model: Any) -> set[str]:
    """The parameters that train."""
    return {name for name, p in model.named_parameters() if p.requires_grad}


def run(trainer: Any) -> list[float]:
    """Train, and give the loss of each step, unrounded."""
    losses: list[float] = []
    original: Callable[..., Any] = trainer.compute_loss

    def recorded(*args: Any, **kwargs: Any) -> Any:
        found = original(*args, **kwargs)
        loss = found[0] if isinstance(found, tuple) else found
        losses.append(float(loss.detach()))
        return found

    trainer.compute_loss = recorded
    trainer.train()
    assert all(loss == loss and abs(loss) != float("inf") for loss in losses), losses
    return losses


def falls(losses: list[float]) -> bool:
    """Whether the last two steps are clearly below the first two."""
    return sum(losses[-2:]) < 0.97 * sum(losses[:2])
