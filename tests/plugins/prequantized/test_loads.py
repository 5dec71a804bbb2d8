"""Stored formats, loaded: what is in memory is what the plan says, to the byte."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_server import HubServer
from stored_formats import store_compressed, store_fp8, store_gguf, store_mxfp4

import loadkit
from loadkit import AuditError, LoadError

Tiny = Callable[..., Path]

no_gpu = pytest.mark.skipif(
    "__import__('torch').cuda.is_available()", reason="what a machine without GPU makes of it"
)
compressed = pytest.mark.skipif(
    importlib.util.find_spec("compressed_tensors") is None, reason="compressed-tensors isn't installed"
)


@pytest.fixture(scope="module")
def fp8(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return store_fp8(tmp_path_factory.mktemp("stored") / "fp8", tiny("mistral"))


@pytest.fixture(scope="module")
def mxfp4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return store_mxfp4(tmp_path_factory.mktemp("stored") / "mxfp4")


def nbytes(model: Any) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


def dtypes(model: Any) -> set[str]:
    return {str(p.dtype).removeprefix("torch.") for p in model.parameters()}


def planned_bytes(loaded: Any) -> int:
    assert loaded.plan.memory is not None
    return loaded.plan.memory.model


@no_gpu
@pytest.mark.parametrize("options", [{}, {"dequantize": True}, {"profile": "full"}, {"dtype": "float32"}])
def test_fp8_is_turned_back(fp8: Path, options: dict[str, Any]) -> None:
    loaded = loadkit.load(fp8, **options)
    assert dtypes(loaded.model) == {options.get("dtype", "bfloat16")}
    assert nbytes(loaded.model) == planned_bytes(loaded)
    assert not getattr(loaded.model, "is_quantized", False)
    assert all(p.requires_grad for p in loaded.model.parameters())


@no_gpu
def test_an_adapter_trains_over_what_was_turned_back(fp8: Path) -> None:
    import torch

    loaded = loadkit.load(fp8, "lora")
    ids = torch.ones(1, 4, dtype=torch.long)
    loaded.model(input_ids=ids, labels=ids).loss.backward()
    assert any(p.grad is not None for p in loaded.model.parameters())


@no_gpu
@pytest.mark.parametrize("kind", ["fp8", "mxfp4"])
def test_it_is_saved_as_a_plain_checkpoint(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """transformers alone packs the weights again, and saves no config that says so."""
    import torch

    model = loadkit.load(request.getfixturevalue(kind)).model
    model.save_pretrained(tmp_path / "plain")
    again = loadkit.load(tmp_path / "plain")
    assert again.plan.quantization is None
    theirs = dict(again.model.named_parameters())
    assert all(torch.equal(p, theirs[name]) for name, p in model.named_parameters())


@no_gpu
def test_merged_experts_are_saved_as_the_files_had_them(tiny: Tiny, tmp_path: Path) -> None:
    """transformers merges the experts of a Mixtral while loading, after turning them back."""
    import torch

    ends = ("_proj.weight", "w1.weight", "w2.weight", "w3.weight")
    loaded = loadkit.load(store_fp8(tmp_path / "fp8", tiny("mixtral"), ends))
    assert nbytes(loaded.model) == planned_bytes(loaded)
    loaded.model.save_pretrained(tmp_path / "plain")
    again = dict(loadkit.load(tmp_path / "plain").model.named_parameters())
    assert all(torch.equal(p, again[name]) for name, p in loaded.model.named_parameters())


@no_gpu
def test_mxfp4_is_turned_back(mxfp4: Path) -> None:
    for options in ({}, {"dequantize": True}):
        loaded = loadkit.load(mxfp4, **options)
        assert dtypes(loaded.model) == {"bfloat16"}
        assert nbytes(loaded.model) == planned_bytes(loaded)


def test_torchao_stays(tiny: Tiny, tmp_path: Path) -> None:
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import AutoModelForCausalLM, TorchAoConfig

    config = TorchAoConfig(Int8WeightOnlyConfig(version=2))
    model = AutoModelForCausalLM.from_pretrained(
        tiny("mistral"), quantization_config=config, dtype="bfloat16", device_map="cpu"
    )
    model.save_pretrained(tmp_path / "int8")
    loaded = loadkit.load(tmp_path / "int8", device_map="cpu")
    assert "torchao 8-bit (stored); can train and be saved" in " ".join(str(loaded.plan).split())
    assert {type(p).__name__ for p in loaded.model.parameters()} == {"Int8Tensor", "Parameter"}


@compressed
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "kind",
    [
        "int-quantized",
        pytest.param("float-quantized", marks=pytest.mark.slow),
        pytest.param("pack-quantized", marks=pytest.mark.slow),
    ],
)
def test_compressed_tensors_stay_until_they_run(tiny: Tiny, tmp_path: Path, kind: str) -> None:
    import torch

    folder = store_compressed(tmp_path / kind, tiny("mistral"), kind)
    loaded = loadkit.load(folder, device_map="cpu")
    assert nbytes(loaded.model) == planned_bytes(loaded)
    loaded.model(torch.ones(1, 4, dtype=torch.long))
    assert dtypes(loaded.model) <= {"bfloat16", "int64"}
    back = loadkit.load(folder, device_map="cpu", dequantize=True)
    assert dtypes(back.model) == {"bfloat16"}
    assert nbytes(back.model) == planned_bytes(back)


@compressed
@pytest.mark.filterwarnings("ignore")
def test_an_adapter_trains_over_compressed_tensors_of_8_bits(tiny: Tiny, tmp_path: Path) -> None:
    import torch

    loaded = loadkit.load(store_compressed(tmp_path / "int8", tiny("mistral")), "lora", device_map="cpu")
    ids = torch.ones(1, 4, dtype=torch.long)
    loaded.model(input_ids=ids, labels=ids).loss.backward()


# --- mutants: what the audit alone would notice


@no_gpu
def test_a_weight_that_is_not_turned_back_is_found(fp8: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from loadkit.loading import load as loading

    def spoilt(*args: Any) -> Any:
        model, changes = run_phases(*args)
        layer = model.model.layers[0].mlp.up_proj
        layer.weight = torch.nn.Parameter(layer.weight.data.to(torch.float8_e4m3fn), requires_grad=False)
        return model, changes

    run_phases = loading.run_phases
    monkeypatch.setattr(loading, "run_phases", spoilt)
    with pytest.raises(AuditError) as caught:
        loadkit.load(fp8)
    assert "not-dequantized" in str(caught.value)


@no_gpu
def test_a_scale_that_was_not_applied_is_found(fp8: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers.integrations.finegrained_fp8 as library

    right = library.Fp8Dequantize._dequantize_one

    def spoilt(self: Any, *args: Any, **kwargs: Any) -> Any:
        made = right(self, *args, **kwargs)
        made[:, :3] *= 2
        return made

    monkeypatch.setattr(library.Fp8Dequantize, "_dequantize_one", spoilt)
    with pytest.raises((AuditError, LoadError)) as caught:
        loadkit.load(fp8)
    assert "other-values" in str(caught.value)


# --- GGUF

gguf = pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="gguf isn't installed")


@pytest.fixture(scope="module")
def gguf_file(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return store_gguf(tmp_path_factory.mktemp("stored") / "tiny.gguf", tiny("llama"))


def test_without_the_package_it_is_a_problem_of_the_plan(gguf_file: Path) -> None:
    if importlib.util.find_spec("gguf") is None:
        with pytest.raises(loadkit.PlanError, match=r"needs gguf>=0\.10\.0"):
            loadkit.plan(gguf_file)
    else:
        assert loadkit.plan(gguf_file).kwargs["gguf_file"] == "tiny.gguf"


@gguf
@pytest.mark.filterwarnings("ignore")
def test_a_gguf_file_holds_what_it_was_made_from(tiny: Tiny, gguf_file: Path, tmp_path: Path) -> None:
    loaded = loadkit.load(gguf_file)
    assert nbytes(loaded.model) == planned_bytes(loaded)
    assert "gguf, dequantized to float32 here" in " ".join(str(loaded.plan).split())
    original = dict(loadkit.load(tiny("llama"), dtype="float32").model.named_parameters())
    for name, parameter in loaded.model.named_parameters():
        assert float((parameter - original[name]).abs().max()) < 1e-3
    loaded.model.save_pretrained(tmp_path / "plain")
    assert loadkit.load(tmp_path / "plain").plan.quantization is None


@gguf
@pytest.mark.filterwarnings("ignore")
def test_an_adapter_trains_over_a_gguf_file(gguf_file: Path) -> None:
    import torch

    loaded = loadkit.load(gguf_file.parent, "lora", gguf_file="tiny.gguf", dtype="bfloat16")
    assert dtypes(loaded.model) == {"bfloat16"}
    assert loaded.plan.memory is not None
    ids = torch.ones(1, 4, dtype=torch.long)
    loaded.model(input_ids=ids, labels=ids).loss.backward()


@gguf
@pytest.mark.filterwarnings("ignore")
def test_a_gguf_file_of_a_repository(hub: HubServer, gguf_file: Path) -> None:
    hub.add("owner/name", gguf_file.parent)
    loaded = loadkit.load("owner/name", gguf_file="tiny.gguf")
    assert loaded.plan.checkpoint.commit
    assert nbytes(loaded.model) == planned_bytes(loaded)
