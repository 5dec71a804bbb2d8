"""The table of methods against the quantizers of the installed transformers."""

from __future__ import annotations

import importlib
import inspect
import re
from types import SimpleNamespace
from typing import Any

import pytest

from loadkit_plugins.prequantized.config_fields import refused_fields
from loadkit_plugins.prequantized.method import Method
from loadkit_plugins.prequantized.methods import METHODS, methods_named

DEVICES = {"torch", "torch_cuda", "torch_xpu", "torch_npu", "torch_hpu"}


def quantizers() -> dict[str, Any]:
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

    return dict(AUTO_QUANTIZER_MAPPING)


def quantizer(method: Method) -> Any:
    return quantizers()["bitsandbytes_4bit" if method.name == "bitsandbytes" else method.name]


def source(method: Method) -> str:
    return inspect.getsource(quantizer(method))


def answer(method: Method, name: str, **fields: Any) -> bool:
    """What the quantizer says of itself, asked without its package."""
    made = object.__new__(quantizer(method))
    made.quantization_config = SimpleNamespace(
        **{"backend": "auto", "quant_type": type("Int8WeightOnlyConfig", (), {})(), **fields}
    )
    made.use_fp8_kernel = False
    said = getattr(made, name)
    if name == "is_serializable":  # as `save_pretrained` does, which fails where it is a property
        return callable(said) and bool(said())
    return bool(said() if callable(said) else said)


def test_every_method_is_in_the_table() -> None:
    theirs = [name for name in quantizers() if not name.startswith("loadkit_")]
    known = {re.sub(r"^bitsandbytes_\dbit$", "bitsandbytes", name) for name in theirs}
    assert set(methods_named()) == known
    assert [m.name for m in METHODS] == sorted(methods_named())


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_a_method_is_what_its_quantizer_says(method: Method) -> None:
    assert quantizer(method).__name__ == method.quantizer
    assert answer(method, "is_serializable") == (method.saves or method.name == "gptq")
    if method.trains_from:
        from peft import import_utils

        own = inspect.getsource(quantizer(method).is_trainable.fget)
        assert f'"{method.trains_from.partition(">=")[2]}"' in own + inspect.getsource(import_utils)
        return
    for field, value in method.trains_with.items():
        other = {**method.trains_with, field: "offline" if value == "online" else False}
        assert not answer(method, "is_trainable", **other)
    assert answer(method, "is_trainable", **method.trains_with) == method.trains


@pytest.mark.parametrize("method", [m for m in METHODS if m.accepts], ids=lambda m: m.name)
def test_a_config_that_its_class_refuses(method: Method) -> None:
    """Values that are told are refused by transformers' class, and the others are taken."""
    made = config_class_of(method)
    wrong = {"weight_block_size": [128], "quant_type": "int4_weight_only"}
    for field, taken in method.accepts.items():
        options = {field: wrong.get(field, "other")}
        assert any(field in told for told in refused_fields(method, options))
        if field != "format":  # `version`, of an older day
            with pytest.raises((ValueError, TypeError, AssertionError, AttributeError)):
                made.from_dict({"quant_method": method.name, **options})
        for value in taken if isinstance(taken, tuple) else ():
            assert list(refused_fields(method, {field: value})) == []
            if "gptq" not in method.name:
                made.from_dict({"quant_method": method.name, field: value})


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_what_is_turned_back(method: Method) -> None:
    """A quantizer that sets `dequantize` itself turns weights back where they can't stay."""
    text = source(method)
    assert method.turned_back == bool(re.search(r"quantization_config\.dequantize = True", text))
    if method.config:
        config = getattr(importlib.import_module("transformers"), method.config)
        assert "dequantize" in inspect.signature(config.__init__).parameters
    elif method.name != "gguf":
        assert "dequantize" not in inspect.signature(config_class(method)).parameters


def config_class_of(method: Method) -> Any:
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING as CONFIGS

    return CONFIGS["bitsandbytes_4bit" if method.name == "bitsandbytes" else method.name]


def config_class(method: Method) -> Any:
    return config_class_of(method).__init__


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_what_it_needs_is_asked_for_by_the_quantizer(method: Method) -> None:
    """Every package of the table is one that the quantizer looks for, and none that it looks for is left
    out."""
    words = {
        "optimum-quanto": "optimum_quanto",
        "flute-kernel": "flute",
        "fast-hadamard-transform": "hadamard",
    }
    words |= {
        "amd-quark": "quark",
        "fbgemm-gpu": "fbgemm_gpu",
        "spqr-quant": "spqr",
        "auto-round": "auto_round",
    }
    needed = {re.split(r"[|<>]", need)[0] for need in (*method.needs, *method.needs_kept)}
    asked = set(re.findall(r"is_(\w+?)_available\(", source(method))) - DEVICES
    if method.name == "gguf":
        return  # in its kernels' module
    expected = {words.get(name, name.replace("-", "_")) for name in needed}
    if method.name == "fbgemm_fp8":
        asked -= {"kernels"}  # on Intel's GPUs
    if method.name == "quanto":
        expected -= {"optimum"}  # optimum-quanto's own
    assert expected == asked
    floors = re.findall(r">=([\d.]+)", " ".join((*method.needs, *method.needs_kept)))
    from transformers.utils import import_utils

    everywhere = source(method) + inspect.getsource(import_utils)
    everywhere += inspect.getsource(importlib.import_module(quantizer(method).__module__))
    assert all(f'"{floor}' in everywhere for floor in floors)


@pytest.mark.parametrize("method", [m for m in METHODS if m.capability > (0, 0)], ids=lambda m: m.name)
def test_the_capability_is_the_quantizers(method: Method) -> None:
    major, minor = method.capability
    text = source(method)
    assert any(
        said in text
        for said in (f"({major}, {minor})", f">= {major}.{minor}", f"major < {major}:", f"major < {major}\n")
    )


def test_hqq_and_nvfp4_cannot_be_read() -> None:
    """Should one be readable again, this fails, and the table is to say so."""
    from transformers.quantizers.base import HfQuantizer

    assert quantizer(methods_named()["hqq"]).get_quantize_ops is HfQuantizer.get_quantize_ops
    assert "pre-quantized NVFP4 checkpoints is not supported" in source(methods_named()["nvfp4"])
