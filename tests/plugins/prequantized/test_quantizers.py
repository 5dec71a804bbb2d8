"""What a method is on a machine, against its quantizer: asked itself, as if it stood on that machine."""

from __future__ import annotations

import importlib
import inspect
import re
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from examples import A100, CPU, H100_FLASH, MPS, T4, gpu

from loadkit import Accelerator, Machine
from loadkit_plugins.prequantized.method import Method
from loadkit_plugins.prequantized.methods import METHODS
from loadkit_plugins.prequantized.requirements import lacking
from loadkit_plugins.prequantized.settings import format_on, misplaced

DEVICES = {"torch", "torch_cuda", "torch_xpu", "torch_npu", "torch_hpu", "torch_mps"}

XPU = msgspec.structs.replace(CPU, accelerators=(Accelerator(kind="xpu", name="Intel"),))
MACHINES = {
    "cpu": CPU,
    "sm75": T4,
    "sm80": A100,
    "sm89": gpu("NVIDIA L4", (8, 9), 24),
    "sm90": H100_FLASH,
    "sm100": gpu("NVIDIA B200", (10, 0), 180),
    "xpu": XPU,
    "mps": MPS,
}
ASKED = [m for m in METHODS if m.name not in ("gguf", "hqq")]
"""Those whose quantizer decides by itself: that of GGUF waits for a file, that of HQQ can't read one."""

NEWEST = {"kernels": "0.18.2", "triton": "3.5.0"}


def quantizer(method: Method) -> Any:
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

    return AUTO_QUANTIZER_MAPPING["bitsandbytes_4bit" if method.name == "bitsandbytes" else method.name]


def said(method: Method, machine: Machine, patch: pytest.MonkeyPatch) -> str:
    """What its quantizer does there: "kept", "turned back" or "refused"."""
    import torch

    kind, capability = machine.kind, machine.capability
    patch.setattr(torch.cuda, "is_available", lambda: kind == "cuda")
    patch.setattr(torch.cuda, "get_device_capability", lambda *which: capability)
    patch.setattr(torch.xpu, "is_available", lambda: kind == "xpu")
    patch.setattr(torch.backends.mps, "is_available", lambda: kind == "mps")
    made = object.__new__(quantizer(method))
    module = importlib.import_module(type(made).__module__)
    for name in (n for n in vars(module) if re.fullmatch(r"is_\w+_available", n)):
        word = name.removeprefix("is_").removesuffix("_available")
        patch.setattr(module, name, _available(word, method, machine))
    if method.name == "sinq":  # it looks for the function when it is asked
        utils = importlib.import_module("transformers.utils")
        patch.setattr(utils, "is_sinq_available", _available("sinq", method, machine))
    if hasattr(module, "get_current_accelerator"):
        device = None if kind == "cpu" else torch.device(kind)
        patch.setattr(module, "get_current_accelerator", lambda: device)
    if method.name == "gptq":
        versions = {"gptqmodel": "7.0.0", "optimum": "2.0.0"}
        patch.setattr(module.metadata, "version", versions.__getitem__)
    made.pre_quantized = True
    made.quantization_config = config = SimpleNamespace(
        dequantize=False,
        pseudoquantization=False,
        use_optimized_inference=False,
        method="sinq",
        activations=None,
    )
    if "llm_int8" in inspect.getsource(type(made)):
        config.llm_int8_enable_fp32_cpu_offload = False
        integrations = importlib.import_module("transformers.integrations")
        patch.setattr(integrations, "validate_bnb_backend_availability", lambda **more: True)
    try:
        made.validate_environment(device_map={"": kind if kind != "cuda" else 0})
    except (ImportError, RuntimeError, ValueError, NotImplementedError):
        return "refused"
    by_default = method.name == "mxfp4" and kind == "cpu"  # told once the model is there: no `use_kernels`
    return "turned back" if config.dequantize or by_default else "kept"


def _available(word: str, method: Method, machine: Machine) -> Any:
    def available(version: str = "", *more: Any, **others: Any) -> bool:
        if f"torch_{machine.kind}" == f"{word}":
            return True
        if word in DEVICES:
            return word == "torch"
        names = {word, word.replace("_", "-"), *ALIASES.get(word, ())}
        if word == "optimum_quanto" and "optimum" not in machine.packages:
            return False
        found = [p for p in machine.packages if p in names]
        return bool(found) and not (version and lacking([f"{found[0]}>={version}"], machine))

    return available


ALIASES = {
    "flute": ("flute-kernel",),
    "hadamard": ("fast-hadamard-transform",),
    "quark": ("amd-quark",),
    "spqr": ("spqr-quant",),
}


def planned_as(method: Method, machine: Machine) -> str:
    made = format_on(method, {}, machine, "bfloat16", asked=False)
    if made.dtype:
        return "turned back" if not lacking(made.needs, machine) else "refused"
    if method.unreadable or misplaced(method, machine) or lacking(made.needs, machine):
        return "refused"
    return "kept"


def packages(method: Method) -> dict[str, str]:
    """Every package that it could want."""
    needs = {*method.needs, *method.needs_kept}
    needs |= {n for more in method.elsewhere.values() for each in more.values() for n in each}
    found = {name: "9.0.0" for need in needs for name in (re.split(r"[|<>]", need)[0],)}
    return {**found, **{name: version for name, version in NEWEST.items() if name in found}}


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("method", ASKED, ids=lambda m: m.name)
def test_the_quantizer_says_the_same(method: Method, name: str) -> None:
    """With every package, and without each of them in turn."""
    whole = packages(method)
    for missing in ("", *whole):
        there = {package: version for package, version in whole.items() if package != missing}
        machine = msgspec.structs.replace(MACHINES[name], packages=there)
        with pytest.MonkeyPatch.context() as patch:
            assert said(method, machine, patch) == planned_as(method, machine), f"without {missing!r}"
