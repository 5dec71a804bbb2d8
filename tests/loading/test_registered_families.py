"""Families of models that a plugin registers: loaded as they are, and what is stated of them is told."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import torch
from model_outputs import batch, logits

import loadkit


class RegistersWren:
    """A plugin that brings a model type which transformers doesn't know, as classes named and not yet
    imported."""

    HOME = "loadkit.testing.checkpoints.remote_code"

    @loadkit.hookimpl
    def loadkit_architectures(self) -> list[loadkit.Architecture]:
        return [
            loadkit.Architecture(
                model_type="wren",
                config=f"{self.HOME}.configuration_wren:WrenConfig",
                models={"causal-lm": f"{self.HOME}.modeling_wren:WrenForCausalLM"},
                lora_target_modules=("q_proj", "v_proj"),
            )
        ]


def test_a_custom_architecture_that_a_plugin_registers(tiny, tmp_path: Path) -> None:
    folder = tiny("remote-code")
    theirs = loadkit.load(folder, trust_remote_code=True)
    manager = loadkit.PluginManager()
    manager.register(RegistersWren(), "wren")
    ours = loadkit.load(folder, "qlora", plugin_manager=manager)
    assert ours.plan.model_class.implementation == "plugin"
    assert ours.plan.kwargs["trust_remote_code"] is False
    adapted = {name.split(".")[-4] for name, _ in ours.model.named_parameters() if "lora_A" in name}
    assert adapted == {"q_proj", "v_proj"}
    bare = loadkit.load(folder, plugin_manager=manager)
    inputs = batch(bare)
    assert torch.equal(logits(bare.model, inputs), logits(theirs.model, inputs))
    again = loadkit.load(bare.save_pretrained(tmp_path / "saved"), plugin_manager=manager)
    assert torch.equal(logits(again.model, inputs), logits(bare.model, inputs))


def test_a_registered_family_is_read_as_what_it_is(tiny, transformers_said: list[str]) -> None:
    """transformers warns of a checkpoint that is read as another type than its own, which this one isn't."""
    manager = loadkit.PluginManager()
    manager.register(RegistersWren(), "wren")
    loadkit.load(tiny("remote-code"), plugin_manager=manager)
    assert [said for said in transformers_said if "to instantiate a model of type" in said] == []


@pytest.fixture
def transformers_said() -> Iterator[list[str]]:
    """What transformers' loggers say meanwhile."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("transformers").addHandler(handler)
    yield said
    logging.getLogger("transformers").removeHandler(handler)


class Unattended:
    """A plugin that brings a family which no attention works with, and which can't be saved."""

    @loadkit.hookimpl
    def loadkit_architectures(self) -> list[loadkit.Architecture]:
        never = loadkit.Unsupported("it attends to nothing")
        names = ("flash_attention_3", "flash_attention_2", "flex_attention", "sdpa", "eager")
        return [
            loadkit.Architecture(
                model_type="wren",
                config=f"{RegistersWren.HOME}.configuration_wren:WrenConfig",
                models={"causal-lm": f"{RegistersWren.HOME}.modeling_wren:WrenForCausalLM"},
                attention=dict.fromkeys(names, never),
            )
        ]


def test_a_family_without_any_attention_is_a_problem_with_its_reasons(tiny) -> None:
    manager = loadkit.PluginManager()
    manager.register(Unattended(), "unattended")
    for asked, code in (({}, "no-attention"), ({"attn_implementation": "sdpa"}, "attention-unavailable")):
        with pytest.raises(loadkit.PlanError) as caught:
            loadkit.plan(tiny("remote-code"), plugin_manager=manager, **asked)
        assert {p.code for p in caught.value.problems} == {code}
        assert "wren: it attends to nothing" in str(caught.value)


def test_a_family_that_cant_be_saved_says_so_in_the_plan(tiny) -> None:
    class Unsavable:
        @loadkit.hookimpl
        def loadkit_architectures(self) -> list[loadkit.Architecture]:
            (wren,) = RegistersWren().loadkit_architectures()
            return [msgspec.structs.replace(wren, unsavable="its weights are made of a seed")]

    manager = loadkit.PluginManager()
    manager.register(Unsavable(), "unsavable")
    plan = loadkit.plan(tiny("remote-code"), plugin_manager=manager)
    (told,) = [p for p in plan.warnings if p.code == "cant-be-saved"]
    assert "its weights are made of a seed" in told.message
    assert "can't be saved" in str(plan)
