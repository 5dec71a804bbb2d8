"""Packages are facts: with each one hidden in turn, what needs it is refused, with what to install."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest
from examples import CPU, H100_FLASH, MISTRAL, PACKAGES, T4, checkpoint, gpu, planned, problems

import loadkit
from loadkit_plugins.attention import FLASH
from loadkit_plugins.prequantized.method import Method
from loadkit_plugins.prequantized.methods import METHODS

NEWEST = "999.0"
CONFIGS: dict[str, dict[str, Any]] = {
    "bitsandbytes": {"load_in_4bit": True}, "compressed-tensors": {"config_groups": {"group_0": {"weights": {"num_bits": 8}}}}, "gptq": {"bits": 4},
    "auto-round": {"bits": 4}, "torchao": {"quant_type": {"default": {"_type": "Int8WeightOnlyConfig"}}},
}  # fmt: skip
"""What a method's config can't be without."""


def names(requirement: str) -> list[str]:
    return [re.split(r"[<>=]", one, maxsplit=1)[0] for one in requirement.split("|")]


def version(requirement: str) -> str:
    """One that serves: the lowest that is named, else a new one."""
    found = re.search(r">=([\d.]+)", requirement)
    return found[1] if found else NEWEST


def everything(method: Method) -> dict[str, str]:
    needs = [
        *method.needs,
        *method.needs_kept,
        *method.runs_with,
        *([method.trains_from] if method.trains_from else []),
    ]
    return {**PACKAGES, **{name: version(need) for need in needs for name in names(need)}}


def outcome(method: Method, packages: dict[str, str]) -> tuple[dict[str, str], Any]:
    """The problems and warnings, and the plan where there is one."""
    facts = checkpoint(
        {**MISTRAL, "quantization_config": {"quant_method": method.name, **CONFIGS.get(method.name, {})}}
    )
    kind = gpu("NVIDIA H100 80GB HBM3", (9, 0), 80, packages=packages)
    try:
        plan = planned(facts, machine=kind)
    except loadkit.PlanError as error:
        return {p.code: f"{p.message} | {p.remedy}" for p in error.problems}, None
    return {w.code: f"{w.message} | {w.remedy}" for w in plan.warnings}, plan


@pytest.mark.parametrize(
    "method",
    [m for m in METHODS if not m.unreadable and m.name not in ("gguf", "metal")],
    ids=lambda m: m.name,
)
def test_each_package_of_a_stored_format(method: Method) -> None:
    packages = everything(method)
    told, _ = outcome(method, packages)
    assert "format-needs-package" not in told, told
    for need in (*method.needs, *method.needs_kept, *method.runs_with):
        without = {name: found for name, found in packages.items() if name not in names(need)}
        told, other = outcome(method, without)
        if need in method.needs_kept and method.turned_back:
            assert other is not None
            assert names(need)[0] in other.quantization.format.because, (need, other.quantization.format)
            continue
        assert names(need)[0] in told["format-needs-package"], (need, told)
        assert "pip install" in told["format-needs-package"]


@pytest.mark.parametrize("name", FLASH)
def test_each_package_of_attention(name: str) -> None:
    needs = FLASH[name].package
    with_it = msgspec.structs.replace(H100_FLASH, packages={**PACKAGES, needs: "9.0"})
    assert planned(machine=with_it, attn_implementation=name).attn_implementation == name
    without = msgspec.structs.replace(H100_FLASH, packages=PACKAGES)
    assert (
        f"pip install {needs}" in problems(machine=without, attn_implementation=name)["attention-unavailable"]
    )
    assert "pip install" not in problems(machine=T4, attn_implementation=name)["attention-unavailable"]


@pytest.mark.parametrize(
    ("package", "code", "options"),
    [
        ("bitsandbytes", "no-bitsandbytes", {"load_in_4bit": True}),
        ("bitsandbytes", "no-bitsandbytes", {"load_in_8bit": True}),
        ("peft", "no-peft", {"profile": "lora"}),
        ("kernels", "attention-unavailable", {"attn_implementation": "kernels-community/flash-attn2"}),
        ("kernels", "no-kernels", {"model_kwargs": {"use_kernels": True}}),
        ("scipy", "no-scipy", {"profile": "lora", "peft_config": {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}, "target_modules": ["q_proj"]}}),
    ],
)  # fmt: skip
def test_each_package_of_an_option(package: str, code: str, options: dict[str, Any]) -> None:
    packages = {name: found for name, found in {**PACKAGES, "scipy": "1.16"}.items() if name != package}
    told = problems(machine=msgspec.structs.replace(CPU, packages=packages), **options)
    assert package in told[code]
    assert re.search(rf"pip install '?{package}", told[code])
