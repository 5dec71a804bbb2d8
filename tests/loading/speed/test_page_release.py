"""Pages of weight files are handed back while a model is quantized out of them, and no value is lost by
it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.nn.modules import module

import loadkit
from loadkit.loading.speed import page_release as releasing
from loadkit.loading.speed.page_release import release, released_while_loading, trim, weight_mappings

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="it is Linux that tells where files are mapped"
)


def resident(path: Path) -> int:
    """Bytes of a file's mappings that are in this process's memory."""
    total, here = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if line[0] in "0123456789abcdef" and "-" in line.split()[0]:
            here = line.endswith(str(path))
        elif here and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


def opened(folder: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A file of 8 MB and its tensors, mapped and read."""
    path = folder / "model.safetensors"
    save_file({name: torch.randn(1024, 1024) for name in ("a", "b")}, path)
    tensors = load_file(path)
    assert float(tensors["a"].sum() + tensors["b"].sum())
    assert resident(path) > 7 * 2**20
    return path, tensors


def test_pages_are_handed_back_but_for_those_that_stay(tmp_path: Path) -> None:
    path, tensors = opened(tmp_path)
    expected = {name: tensor.sum() for name, tensor in tensors.items()}
    start = tensors["a"].data_ptr()
    mappings = weight_mappings([path])
    release(mappings, [(start, start + tensors["a"].nbytes)])
    assert 4 * 2**20 <= resident(path) < 4.1 * 2**20
    release(mappings, [])
    assert resident(path) == 0
    assert {name: tensor.sum() for name, tensor in tensors.items()} == expected


def test_what_was_written_is_left_alone(tmp_path: Path) -> None:
    path, tensors = opened(tmp_path)
    tensors["a"].fill_(7.0)
    (mapping,) = [m for m in weight_mappings([path]) if m.changed]
    release([mapping], [])
    assert bool((tensors["a"] == 7.0).all())


def test_a_load_holds_no_more_of_the_file_than_the_model_does(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny("mistral")
    handed_back = []
    monkeypatch.setattr(releasing, "OFTEN", 1)
    monkeypatch.setattr(releasing, "release", lambda *args: handed_back.append(release(*args)))
    loaded = loadkit.load(folder, "qlora", adapter=False, training=False)
    assert sum(handed_back) > 0
    assert len(handed_back) > 14  # one for each parameter, and one at the end
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.bfloat16,
        quantization_config=transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        ),
    )
    theirs = model.state_dict()
    ours = loaded.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_model_that_trained_in_the_same_file_keeps_what_it_learned(
    tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny("mistral")
    monkeypatch.setattr(releasing, "OFTEN", 1)
    trained = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.fill_(3.0)
    loadkit.load(folder, "qlora")
    assert all(bool((parameter == 3.0).all()) for parameter in trained.parameters())


def failing(paths: list[Path]) -> None:
    with released_while_loading(paths):
        assert len(module._global_parameter_registration_hooks) == 1
        raise KeyError


def test_hooks_are_taken_back_after_a_failure(tiny) -> None:
    with pytest.raises(KeyError):
        failing([tiny("mistral") / "model.safetensors"])
    assert not module._global_parameter_registration_hooks
    assert not module._global_buffer_registration_hooks


def test_elsewhere_than_on_linux_nothing_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = opened(tmp_path)
    mappings = weight_mappings([path])
    monkeypatch.setattr(sys, "platform", "darwin")
    with released_while_loading([path]):
        torch.nn.Linear(2, 2)
    assert release(mappings, []) == 0
    trim()
    assert resident(path) > 7 * 2**20


class Packed(torch.Tensor):
    """A tensor without a storage of its own, as some quantizers make them."""

    @staticmethod
    def __new__(cls, shape: tuple[int, ...]) -> Packed:
        return torch.Tensor._make_wrapper_subclass(cls, shape)  # type: ignore[attr-defined,no-any-return]

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return args[0] if func is torch.ops.aten.detach.default else NotImplemented


def test_parameters_without_a_storage_stop_nothing(tiny) -> None:
    with released_while_loading([tiny("mistral") / "model.safetensors"]):
        torch.nn.LazyLinear(2)
        holder = torch.nn.Module()
        holder.weight = torch.nn.Parameter(Packed((4, 4)), requires_grad=False)
    assert isinstance(holder.weight, Packed)
