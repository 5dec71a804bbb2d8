"""Formats that stay as they are stored, loaded: what they are in memory, what trains, what can be saved."""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stored_formats import store_awq, store_bitnet, store_gemma, store_gptq, store_metal, store_mxfp8

import loadkit
from loadkit import AuditError, PlanError
from loadkit_plugins.prequantized import audit as prequantized_audit

Tiny = Callable[..., Path]
Store = Callable[[Path, Path], Path]

no_gpu = pytest.mark.skipif(
    "__import__('torch').cuda.is_available()", reason="what a machine without GPU makes of it"
)
ONLINE = {"linear_class": "autobitlinear", "quantization_mode": "online"}


@pytest.fixture(autouse=True)
def _eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers compiles what BitNet's layers do: a minute of C++ for a tiny model, and the same numbers
    without."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch 2.13 imports its own `torch.jit`
        module = importlib.import_module("transformers.integrations.bitnet")
    places = [(module, "unpack_weights"), (module.WeightQuant, "forward"), (module.ActQuant, "forward")]
    for place, name in places:
        compiled = getattr(place, name)
        plain = getattr(compiled, "_torchdynamo_orig_callable", compiled)
        monkeypatch.setattr(place, name, plain if place is module else staticmethod(plain))


def nbytes(model: Any) -> int:
    """Of all weights, those in buffers too, but for what the model computes for itself."""
    kept = {name for name in model.state_dict() if "inv_freq" not in name}
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return sum(t.numel() * t.element_size() for name, t in tensors.items() if name in kept)


def planned_bytes(loaded: Any) -> int:
    assert loaded.plan.memory is not None
    return loaded.plan.memory.model


def layer(model: Any) -> Any:
    return getattr(model, "base_model", model).model.model.layers[0].self_attn.q_proj


def loss(model: Any) -> Any:
    import torch

    ids = torch.arange(1, 9).reshape(1, 8)
    return model(input_ids=ids, labels=ids).loss


def stored_by(store: Any, **fields: Any) -> Store:
    return lambda folder, source: store(folder, source, **fields)


@no_gpu
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch 2.13 imports its own `torch.jit`
@pytest.mark.parametrize(
    ("store", "words", "kind"),
    [
        (store_bitnet, "bitnet 2-bit (stored); can't train, can be saved", "BitLinear"),
        (store_gemma, "gemma 4-bit (stored) (num_bits=4); can't train or be saved", "QuantizedLinear"),
        (stored_by(store_gemma, bits=8), "gemma 8-bit (stored) (num_bits=8); can't train", "QuantizedLinear"),
        (store_metal, "metal, dequantized to bfloat16 here: no Apple GPU; can train", "Linear"),
        (store_mxfp8, "mxfp8, dequantized to bfloat16 here: no GPU of capability 8.9", "Linear"),
        (stored_by(store_bitnet, **ONLINE), "bitnet, dequantized to bfloat16 here: its layers hold them so; can train", "AutoBitLinear"),
        (stored_by(store_bitnet, linear_class="autobitlinear"), "its layers hold them so; can't train", "AutoBitLinear"),
    ],
)  # fmt: skip
def test_in_memory_it_is_what_the_plan_says(
    tiny: Tiny, tmp_path: Path, store: Store, words: str, kind: str
) -> None:
    loaded = loadkit.load(store(tmp_path / "stored", tiny("mistral")))
    assert words in " ".join(str(loaded.plan).split())
    assert type(loaded.model.model.layers[0].self_attn.q_proj).__name__ == kind
    assert nbytes(loaded.model) == planned_bytes(loaded)
    assert loaded.plan.quantization is not None
    assert loaded.plan.quantization.format.saves == (kind != "QuantizedLinear")  # type: ignore[union-attr]
    if kind == "QuantizedLinear":  # its `is_serializable` is a property, which transformers 5.23 calls
        with pytest.raises(TypeError, match="not callable"):
            loaded.model.save_pretrained(tmp_path / "again")
        return
    loaded.model.save_pretrained(tmp_path / "again")
    again = loadkit.load(tmp_path / "again")
    assert type(again.model.model.layers[0].self_attn.q_proj).__name__ == kind
    theirs = again.model.state_dict()
    assert all((tensor == theirs[name]).all() for name, tensor in loaded.model.state_dict().items())


@no_gpu
def test_layers_that_quantize_as_they_compute_train_whole_or_under_an_adapter(
    tiny: Tiny, tmp_path: Path
) -> None:
    folder = store_bitnet(tmp_path / "online", tiny("mistral"), **ONLINE)
    for profile in ("full", "lora"):
        model = loadkit.load(folder, profile).model
        loss(model).backward()
        trained = [p for p in model.parameters() if p.requires_grad]
        assert trained
        assert all(p.grad is not None for p in trained)
    half = store_bitnet(tmp_path / "half", tiny("mistral"), quantization_mode="online")
    with pytest.raises(PlanError, match="linear_class='autobitlinear' and quantization_mode='online'"):
        loadkit.plan(half, "lora")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("bitsandbytes", {"load_in_4bit": True, "bnb_4bit_use_double_quant": True}),
        ("bitsandbytes", {"load_in_8bit": True}),
        ("torchao", {}),
    ],
)
def test_what_stays_packed_can_be_saved(
    tiny: Tiny, tmp_path: Path, method: str, options: dict[str, Any]
) -> None:
    """transformers 5.23 alone raises NotImplementedError for all three."""
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TorchAoConfig

    config = (
        BitsAndBytesConfig(**options)
        if method == "bitsandbytes"
        else TorchAoConfig(Int8WeightOnlyConfig(version=2))
    )
    made = AutoModelForCausalLM.from_pretrained(
        tiny("mistral"), quantization_config=config, dtype="bfloat16", device_map="cpu"
    )
    made.save_pretrained(tmp_path / "stored")
    loaded = loadkit.load(tmp_path / "stored", device_map="cpu")
    loaded.model.save_pretrained(tmp_path / "again")
    names = [
        sorted(json.loads((tmp_path / each / "config.json").read_text())["quantization_config"])
        for each in ("stored", "again")
    ]
    assert names[0] == names[1]
    again = loadkit.load(tmp_path / "again", device_map="cpu")
    assert float(loss(again.model)) == float(loss(loaded.model))


# --- GPTQ and AWQ, where gptqmodel is installed


@pytest.fixture
def gptqmodel() -> None:
    """gptqmodel 7 computes on CPUs too; it isn't among the test dependencies, as it has no wheels."""
    pytest.importorskip("gptqmodel", reason="gptqmodel isn't installed: GPTQ and AWQ can't be loaded")
    pytest.importorskip("optimum", reason="optimum isn't installed: GPTQ can't be loaded")


PACKED = [("gptq", store_gptq), ("awq", store_awq)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("gptqmodel")
@pytest.mark.parametrize(("method", "store"), PACKED)
def test_gptq_and_awq_stay(tiny: Tiny, tmp_path: Path, method: str, store: Store) -> None:
    loaded = loadkit.load(store(tmp_path / "stored", tiny("mistral")))
    assert f"{method} 4-bit (stored)" in " ".join(str(loaded.plan).split())
    assert not hasattr(loaded.model.model.layers[0].self_attn.q_proj, "weight")
    assert nbytes(loaded.model) == pytest.approx(planned_bytes(loaded), rel=0.01)
    original = loadkit.load(tiny("mistral")).model
    assert float(loss(loaded.model)) == pytest.approx(float(loss(original)), rel=0.05)
    assert loaded.plan.quantization is not None
    assert loaded.plan.quantization.format.saves == (method == "awq")  # type: ignore[union-attr]
    fresh = loadkit.load(tmp_path / "stored").model
    fresh.save_pretrained(tmp_path / "again")  # transformers writes GPTQ's zero points one off
    again = float(loss(loadkit.load(tmp_path / "again").model))
    assert (again == float(loss(loaded.model))) == (method == "awq")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("gptqmodel")
@pytest.mark.parametrize(("method", "store"), PACKED)
def test_gptq_and_awq_train_under_an_adapter(
    tiny: Tiny, tmp_path: Path, method: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Left to itself, gptqmodel takes a kernel without a backward pass, and PEFT finds no linear layer."""
    from loadkit.loading import from_pretrained

    folder = store(tmp_path / "stored", tiny("mistral"))
    loaded = loadkit.load(folder, "qlora")
    assert "backend=auto_trainable is set" in loaded.plan.why("quantization").because
    loss(loaded.model).backward()
    adapters = {n: p for n, p in loaded.model.named_parameters() if "lora_" in n}
    assert all(p.grad is not None for p in adapters.values())
    assert len(adapters) == 2 * 7 * loaded.model.config.num_hidden_layers
    assert loaded.plan.memory is not None
    assert sum(p.numel() * p.element_size() for p in adapters.values()) == loaded.plan.memory.adapters
    monkeypatch.setattr(from_pretrained, "set_stored", lambda *about: None)
    with pytest.raises(NotImplementedError, match="inference-only"):
        loadkit.load(folder, "qlora")


# --- mutants: what the audit alone would notice


@no_gpu
def test_weights_that_were_turned_back_are_found(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.quantizers.quantizer_gemma import GemmaQuantizer

    folder = store_gemma(tmp_path / "gemma", tiny("mistral"), bits=8)

    def turned(self: Any, model: Any, **kwargs: Any) -> Any:
        import torch

        for name, module in list(model.named_modules()):
            if type(module).__name__ == "QuantizedLinear":
                plain = torch.nn.Linear(module.in_features, module.out_features, bias=False)
                plain.weight.data = module._dequantize_weights(torch.bfloat16)
                model.set_submodule(name, plain)
        return model

    monkeypatch.setattr(GemmaQuantizer, "_process_model_after_weight_loading", turned)
    with pytest.raises(AuditError, match="not-quantized"):
        loadkit.load(folder)


@no_gpu
def test_ternary_values_are_held_against_the_file(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers.integrations.bitnet as library

    folder = store_bitnet(tmp_path / "offline", tiny("mistral"), linear_class="autobitlinear")
    right = library.BitNetDeserialize.convert

    def spoilt(self: Any, *args: Any, **kwargs: Any) -> Any:
        return {name: -weight for name, weight in right(self, *args, **kwargs).items()}

    monkeypatch.setattr(library.BitNetDeserialize, "convert", spoilt)
    with pytest.raises(AuditError, match="other-values"):
        loadkit.load(folder)


def test_a_model_of_quantizing_layers_that_are_plain_is_found(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the exception for them gone, the quantizer's name on the model is one too many."""
    folder = store_bitnet(tmp_path / "online", tiny("mistral"), **ONLINE)
    monkeypatch.setattr(prequantized_audit, "holds_floats", lambda *about: False)
    with pytest.raises(AuditError, match="not-dequantized"):
        loadkit.load(folder)
