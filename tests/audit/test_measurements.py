"""What is counted of a model, on models of a few numbers: each byte once, each under its name."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from loadkit.audit import measurements
from loadkit.audit.measurements import measure, peak_memory
from loadkit.audit.model_access import base_of, configs, input_embeddings, is_packed, output_embeddings
from loadkit.schema.quantized_weights import Opened


class Manager:
    """Plugins that open a packed parameter, or don't."""

    def __init__(self, opened: Callable[[Any], Opened | None] = lambda parameter: None) -> None:
        self.opened = opened
        self.asked: list[Any] = []

    def first(self, hook: Any, *, plan: Any, parameter: Any) -> Opened | None:
        assert hook.__name__ == "loadkit_open_parameter"
        self.asked.append((plan, parameter))
        return self.opened(parameter)


class Model(nn.Module):
    """An embedding, two layers, a norm and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(2)])
        self.norm = nn.LayerNorm(4)
        self.head: nn.Module | None = nn.Linear(4, 10, bias=False)
        self.register_buffer("positions", torch.zeros(3, dtype=torch.float64))

    def get_output_embeddings(self) -> nn.Module | None:
        return self.head

    def get_input_embeddings(self) -> nn.Module:
        return self.embed


def packed(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape, dtype=torch.uint8), requires_grad=False)


def measured(model: Any, manager: Manager | None = None) -> Any:
    return measure("the plan", model, manager or Manager())  # type: ignore[arg-type]


def test_a_plain_model() -> None:
    model = Model()
    model.norm.requires_grad_(False)
    model.layers[1].to(torch.bfloat16)
    found = measured(model)
    assert found.model_class == "Model"
    assert found.modules == {"Linear": 3, "Embedding": 1, "LayerNorm": 1}
    assert next(iter(found.modules)) == "Linear"  # the most common comes first
    assert found.bytes_by_dtype == {"float32": 4 * (40 + 20 + 8 + 40), "bfloat16": 2 * 20, "float64": 24}
    assert list(found.bytes_by_dtype) == ["float32", "bfloat16", "float64"]
    assert (found.parameters, found.trainable) == (128, 120)
    assert found.footprint == sum(found.bytes_by_dtype.values())
    assert found.devices == {"cpu": found.footprint}
    assert found.unquantized == {}


def test_tensors_that_are_shared_count_once() -> None:
    model = Model()
    assert model.head is not None
    model.head.weight = model.embed.weight
    found = measured(model)
    assert found.parameters == 40 + 40 + 8
    assert found.modules == {"Linear": 2, "Embedding": 1, "LayerNorm": 1}


def test_a_packed_parameter_counts_as_the_plugin_opens_it() -> None:
    model = Model()
    model.layers[0].weight = packed(8)
    scales = torch.ones(2, dtype=torch.float16)
    manager = Manager(lambda p: Opened(data=p.data, constants=(scales,), count=16))
    found = measured(model, manager)
    assert manager.asked == [("the plan", model.layers[0].weight)]
    assert (found.bytes_by_dtype["uint8"], found.bytes_by_dtype["float16"]) == (8, 4)
    assert found.parameters == 128
    assert found.trainable == 128 - 16
    unopened = measured(model)
    assert unopened.parameters == 128 - 8
    assert "float16" not in unopened.bytes_by_dtype


class Own(nn.Linear):
    """A class of the model's own."""


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.zeros(2, 3, 5))


class RMSNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(9))


def quantized() -> Model:
    """One layer is packed; the other stays, with others of every sort."""
    model = Model()
    model.layers[0].weight = packed(8)
    model.norm = RMSNorm()  # type: ignore[assignment]
    model.own = Own(3, 1, bias=False)
    model.experts = Experts()
    model.conv = nn.Conv1d(1, 1, 7, bias=False)
    model.lora_A = nn.Linear(4, 1, bias=False)
    return model


def test_what_stays_unquantized_is_told_by_its_reason() -> None:
    found = measured(quantized()).unquantized
    assert found == {
        "embeddings": 160,
        "head": 160,
        "fused experts": 120,
        "skipped": 64,
        "other": 4 * (4 + 4 + 7),  # two biases and a convolution
        "norms": 36,
        "subclasses of Linear": 12,
    }
    assert list(found.values()) == sorted(found.values(), reverse=True)


def test_a_head_that_is_the_embedding_is_told_as_that() -> None:
    model = quantized()
    assert model.head is not None
    model.head.weight = model.embed.weight
    found = measured(model).unquantized
    assert found["embeddings"] == 160
    assert "head" not in found


def test_without_output_embeddings_an_outermost_linear_is_the_head() -> None:
    model = quantized()
    model.score, model.head = model.head, None
    assert measured(model).unquantized["head"] == 160
    holder = nn.Module()
    holder.original_module, model.score = model.score, holder
    assert measured(model).unquantized["head"] == 160
    inner = nn.Module()
    inner.inner, model.score = holder, inner
    found = measured(model).unquantized
    assert "head" not in found
    assert found["skipped"] == 64 + 160


def test_of_an_adapted_model_the_base_is_looked_at() -> None:
    class Adapted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base = quantized()

        def get_base_model(self) -> nn.Module:
            return self.base

    model = Adapted()
    found = measured(model)
    assert found.model_class == "Model"
    assert found.unquantized["head"] == 160
    assert base_of(model) is model.base
    assert base_of(model.base) is model.base


# --- Looking into a model
# -----------------------------------------------------------------------------------------------


def test_what_is_packed() -> None:
    class Theirs(nn.Parameter):
        pass

    class Subclass(torch.Tensor):
        pass

    assert not is_packed(nn.Parameter(torch.zeros(2)))
    assert is_packed(packed(2))
    assert is_packed(Theirs(torch.zeros(2)))
    assert is_packed(nn.Parameter(torch.zeros(2).as_subclass(Subclass)))


def test_configs_at_every_depth() -> None:
    inner = SimpleNamespace(sub_configs={})
    middle = SimpleNamespace(sub_configs={"vision": object}, vision=inner)
    outer = SimpleNamespace(
        sub_configs={"text": 0, "none": 0, "odd": 0, "absent": 0}, text=middle, none=None, odd={}
    )
    assert list(configs(outer)) == [("", outer), ("text", middle), ("text.vision", inner)]


def test_embeddings_of_a_class_that_doesnt_tell() -> None:
    class Silent:
        def get_input_embeddings(self) -> None:
            raise NotImplementedError

        get_output_embeddings = get_input_embeddings

    model = Model()
    assert (input_embeddings(model), output_embeddings(model)) == (model.embed, model.head)
    assert (input_embeddings(Silent()), output_embeddings(Silent())) == (None, None)


# --- Memory
# -----------------


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_the_highest_resident_set_is_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    status = "Name:\tx\nVmPeak:\t 99 kB\nVmHWM:\t    7 kB\nVmRSS:\t 5 kB\n"
    real = Path.read_text
    monkeypatch.setattr(
        Path,
        "read_text",
        lambda self, *a, **k: status if self == Path("/proc/self/status") else real(self, *a, **k),
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert peak_memory() == {"host": 7 * 1024}


def test_elsewhere_it_is_the_operating_systems_or_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "is_file", lambda self: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "platform", "win32")
    assert peak_memory() == {}
    pytest.importorskip("resource")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert peak_memory()["host"] > 0


def test_every_device_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurements, "_highest_resident", lambda: 5)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda index: 100 + index)
    assert peak_memory() == {"host": 5, "cuda:0": 100, "cuda:1": 101}
