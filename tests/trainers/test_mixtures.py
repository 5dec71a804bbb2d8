"""TRL's SFT over mixtures of experts: the adapters alone change, and what was saved is all there."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from model_outputs import batch, logits
from trainers.data import QUIET, Watch, changed, conversations, falls, run, settings, snapshot, trainable
from trl import SFTConfig, SFTTrainer

import loadkit
from loadkit.compat import from_training_arguments

Tiny = Callable[..., Path]
pytestmark = QUIET

DEFAULT = {("qwen3-moe", "qlora", False), ("gpt-oss", "qlora", True)}
CASES = [
    pytest.param(*case, marks=[] if case in DEFAULT else pytest.mark.slow)
    for case in itertools.product(
        ["qwen3-moe", "gpt-oss", "mixtral"], ["qlora", "qlora-8bit", "lora"], [False, True]
    )
]


def sft(loaded: loadkit.Loaded, args: Any, **more: Any) -> Any:
    about = {"processing_class": loaded.processing_class, "train_dataset": conversations()}
    return SFTTrainer(model=loaded.model, args=args, **about, **more)


def inputs(loaded: loadkit.Loaded) -> dict[str, Any]:
    return {name: value for name, value in batch(loaded).items() if name != "labels"}


@pytest.mark.parametrize(("arch", "profile", "experts"), CASES)
def test_the_loss_falls_and_only_adapters_change(
    tiny: Tiny, tmp_path: Path, arch: str, profile: str, experts: bool
) -> None:
    args = settings(SFTConfig, tmp_path / "out", max_length=128, max_steps=14)
    options = {"lora_experts": experts, **from_training_arguments(args)}
    loaded = loadkit.load(tiny(arch), profile, **options)
    planned, before, watch = trainable(loaded.model), snapshot(loaded.model), Watch()
    assert planned == {name for name in before if ".lora_" in name}
    assert any(".experts." in name for name in planned) is experts
    assert not any(".gate." in name or ".router." in name for name in planned)
    losses = run(trainer := sft(loaded, args, callbacks=[watch]))
    assert falls(losses), losses
    assert watch.reached == planned
    assert changed(before, loaded.model) == planned

    trained = logits(loaded.model, inputs(loaded))
    trainer.save_model(str(tmp_path / "trainer"))
    loaded.save_pretrained(tmp_path / "ours")
    for folder in (tmp_path / "trainer", tmp_path / "ours"):
        again = loadkit.load(folder, profile)
        assert torch.equal(logits(again.model, inputs(loaded)), trained)
    merged(tiny(arch), tmp_path / "ours", tmp_path / "merged")


def merged(base: Path, adapter: Path, out: Path) -> None:
    """The merged folder has PEFT's values, rounded once."""
    loadkit.merge(adapter, out)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    wanted = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()
    found = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.bfloat16).state_dict()
    assert wanted.keys() == found.keys()
    assert all(torch.equal(tensor.to(torch.bfloat16), found[name]) for name, tensor in wanted.items())


class Begun(transformers.TrainerCallback):
    """Notes what is to be trained, when the first step begins."""

    values: dict[str, torch.Tensor]

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self.values = values_of(given["model"])


def values_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def run_of(base: Path, out: Path, profile: str, steps: int, resume: str = "", **options: Any) -> Any:
    """What trains, before the first step and after so many, with a checkpoint every second one."""
    args = settings(SFTConfig, out, max_length=64, save_strategy="steps", save_steps=2, max_steps=steps)
    torch.manual_seed(0)  # for lora_A
    loaded, begun = loadkit.load(base, profile, **options, **from_training_arguments(args)), Begun()
    sft(loaded, args, callbacks=[begun]).train(resume_from_checkpoint=resume or None)
    return begun.values, values_of(loaded.model)


def test_a_run_that_was_cut_off_goes_on(tiny: Tiny, tmp_path: Path) -> None:
    """Four steps at once, and two and two with a checkpoint between, are the same adapters to the bit: in
    float32, into which transformers' trainer puts adapters when it goes on."""
    options = {"lora_experts": True, "lora_dropout": 0.0, "adapter_dtype": "float32"}
    base, one, two = tiny("qwen3-moe"), tmp_path / "one", tmp_path / "two"
    _, at_once = run_of(base, one, "lora", 4, **options)
    run_of(base, two, "lora", 2, **options)
    _, resumed = run_of(base, two, "lora", 4, resume=str(two / "checkpoint-2"), **options)
    assert any(".experts." in name for name in at_once)
    assert at_once.keys() == resumed.keys()
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in at_once.items())


@pytest.mark.filterwarnings("ignore")
def test_transformers_trainer_forgets_experts_that_trained_whole(tiny: Tiny, tmp_path: Path) -> None:
    """TRAPS 33, in transformers 5.23: where this fails, the page can lose a paragraph."""
    base = tiny("qwen3-moe")
    untrained, trained = run_of(base, tmp_path, "full", 2)
    resumed, _ = run_of(base, tmp_path, "full", 3, resume=str(tmp_path / "checkpoint-2"))
    experts = {name for name in resumed if ".experts." in name}
    assert experts
    assert all(torch.equal(resumed[name], untrained[name]) for name in experts)
    assert all(torch.equal(resumed[name], trained[name]) for name in resumed.keys() - experts)
    assert not any(torch.equal(untrained[name], trained[name]) for name in experts)
    saved = loadkit.load(tmp_path / "checkpoint-2", "full").model.state_dict()
    assert all(torch.equal(saved[name], trained[name]) for name in trained)
