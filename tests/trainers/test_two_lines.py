"""TRL's scripts with the two lines that change: the import and `model=get_model(...)`; the rest as before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from trainers.data import QUIET, conversations, preferences, settings
from trainers.test_vision import pictures
from trl import (
    DPOConfig,
    DPOTrainer,
    ModelConfig,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
    get_peft_config,
)

from loadkit.compat import get_model

Tiny = Callable[..., Path]
pytestmark = QUIET


def script(trainer: type, model_args: ModelConfig, training_args: Any, data: Any) -> Any:
    """The body of a script of TRL's."""
    return trainer(
        model=get_model(model_args, training_args),
        args=training_args,
        train_dataset=data,
        peft_config=get_peft_config(model_args),
    )


@pytest.mark.parametrize("use_peft", [False, True])
@pytest.mark.parametrize(
    ("arch", "trainer", "config", "data"),
    [
        ("mistral", SFTTrainer, SFTConfig, conversations),
        ("mistral", DPOTrainer, DPOConfig, preferences),
        ("mistral", RewardTrainer, RewardConfig, preferences),
        ("gemma3", SFTTrainer, SFTConfig, pictures),
    ],
    ids=["sft", "dpo", "reward", "vision"],
)
def test_a_script(
    tiny: Tiny,
    tmp_path: Path,
    arch: str,
    trainer: type,
    config: type,
    data: Callable[[], Any],
    use_peft: bool,
) -> None:
    more = {"max_length": None if arch == "gemma3" else 128, "max_steps": 2}
    training_args = settings(config, tmp_path / "out", **more)
    task = "SEQ_CLS" if config is RewardConfig else "CAUSAL_LM"
    model_args = ModelConfig(
        model_name_or_path=str(tiny(arch)),
        dtype="float32",
        use_peft=use_peft,
        lora_task_type=task,
        lora_target_modules=["q_proj", "v_proj"],
    )
    made = script(trainer, model_args, training_args, data())
    assert torch.isfinite(torch.tensor(made.train().training_loss))
    if config is RewardConfig:
        assert made.model.config.num_labels == 1
    assert hasattr(made.model, "peft_config") is use_peft
