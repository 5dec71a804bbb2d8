"""What a stored format is on machines that aren't here."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from examples import A100, CPU, H100_FLASH, MISTRAL, MPS, PACKAGES, T4, checkpoint, gpu, planned, problems

from loadkit import Checkpoint, Machine, StoredFormat
from loadkit.plugins import TensorHeader
from loadkit.schema.value_text import value_text
from loadkit_plugins.prequantized.methods import METHODS

KERNELS = {**PACKAGES, "kernels": "0.18.2", "triton": "3.5.0"}
H100_KERNELS = gpu("NVIDIA H100 80GB HBM3", (9, 0), 80, packages=KERNELS)
A100_KERNELS = gpu("NVIDIA A100-SXM4-80GB", (8, 0), 80, packages=KERNELS)


def of(method: str, **fields: Any) -> Checkpoint:
    return checkpoint({**MISTRAL, "quantization_config": {"quant_method": method, **fields}})


def found(facts: Checkpoint, machine: Machine, profile: str | None = None, **options: Any) -> StoredFormat:
    quantization = planned(facts, profile, machine=machine, **options).quantization
    assert quantization is not None
    assert isinstance(quantization.format, StoredFormat)
    return quantization.format


@pytest.mark.parametrize(
    ("method", "machine", "dtype", "because"),
    [
        ("fp8", CPU, "bfloat16", "no GPU of capability 8.9"),
        ("fp8", T4, "float16", "no GPU of capability 8.9"),
        ("fp8", A100, "bfloat16", "no GPU of capability 8.9"),
        ("fp8", H100_FLASH, "", ""),
        ("mxfp8", A100, "bfloat16", "no GPU of capability 8.9"),
        ("mxfp4", CPU, "bfloat16", "no GPU of capability 7.5"),
        ("mxfp4", H100_FLASH, "bfloat16", "no triton>=3.4.0"),
        ("mxfp4", A100_KERNELS, "", ""),
        ("metal", CPU, "bfloat16", "no Apple GPU"),
        ("bitnet", CPU, "", ""),
    ],
)
def test_stored_kept_or_turned_back(method: str, machine: Machine, dtype: str, because: str) -> None:
    """TRAPS 31."""
    made = found(of(method), machine)
    assert (made.dtype, made.because) == (dtype, because)


def test_the_plan_says_it_in_words() -> None:
    plan = planned(of("fp8"), machine=A100)
    said = "fp8, dequantized to bfloat16 here: no GPU of capability 8.9; can train and be saved"
    assert value_text(plan.quantization) == said
    assert said in " ".join(str(plan).split())
    kept = planned(of("mxfp4"), machine=H100_KERNELS)
    assert value_text(kept.quantization) == "mxfp4 4-bit (stored); can't train, can be saved"
    assert "kernels>=0.18.2" in kept.why("quantization").because


def test_another_version_of_kernels_does_not_serve() -> None:
    old = msgspec.structs.replace(H100_KERNELS, packages={**KERNELS, "kernels": "0.17.2"})
    assert found(of("mxfp4"), old).because == "no kernels>=0.18.2,<0.19.0"


def test_memory_counts_what_is_in_memory() -> None:
    """fp8 files that are turned back take twice their size."""
    plain = checkpoint()
    tensors = {
        name: TensorHeader("F8_E4M3", t.shape, 64 * 64, t.file) if "layers" in name else t
        for name, t in plain.tensors.items()
    }
    scales = {f"{n}_scale_inv": TensorHeader("F32", (1, 1), 4, "m") for n in tensors if "layers" in n}
    stored = msgspec.structs.replace(of("fp8"), tensors={**tensors, **scales})
    unquantized = planned(plain, machine=A100).memory
    back, kept = planned(stored, machine=A100).memory, planned(stored, machine=H100_FLASH).memory
    assert unquantized
    assert back
    assert kept
    assert back.model == unquantized.model
    assert (kept.quantized, kept.constants) == (len(scales) * 64 * 64, len(scales) * 4)
    full = planned(stored, "full", machine=A100).memory
    assert full
    assert full.gradients == unquantized.model


def test_what_is_turned_back_trains_like_any_other() -> None:
    for profile in ("full", "lora", "qlora"):
        preparation = planned(of("fp8"), profile, machine=A100).preparation
        assert (preparation.training, preparation.kbit) == (True, False)
    assert planned(of("fp8"), "lora", machine=H100_FLASH).preparation.kbit


def test_training_over_a_method_that_cannot_is_refused() -> None:
    """TRAPS 32."""
    told = problems(of("mxfp4"), "qlora", machine=H100_KERNELS)["format-cannot-train"]
    assert "dequantize=True" in told
    assert "unquantized checkpoint" in told
    quark = msgspec.structs.replace(CPU, packages={**PACKAGES, "amd-quark": "0.12"})
    assert "dequantize" not in problems(of("quark"), "lora", machine=quark)["format-cannot-train"]
    assert planned(of("quark"), machine=quark).quantization is not None
    online = {"quantization_mode": "online", "linear_class": "autobitlinear"}
    assert "quantization_mode='online'" in problems(of("bitnet"), "lora")["format-cannot-train"]
    assert planned(of("bitnet", **online), "lora").quantization is not None


def test_dequantize_asks_for_floating_point_aloud() -> None:
    made = found(of("mxfp4"), H100_KERNELS, "lora", dequantize=True)
    assert (made.dtype, made.asked, made.trains) == ("bfloat16", True, True)
    plan = planned(of("mxfp4"), "lora", machine=H100_KERNELS, dequantize=True)
    assert plan.kwargs["quantization_config"] == {"method": "mxfp4", "dequantize": True}
    assert plan.adapters is not None
    assert not plan.adapters.dequantize  # nothing is left for the phase
    told = problems(of("gptq", bits=4), dequantize=True)
    assert "gptq" in told["no-dequantize"]
    assert "dequantize-unused" not in told
    assert "dequantize-unused" in problems(dequantize=True)


def test_formats_to_turn_back_are_named() -> None:
    """Those that are named, and no other; a checkpoint that isn't quantized is none of them."""
    turned = found(of("mxfp4"), H100_KERNELS, "lora", dequantize_stored=["mxfp4", "fp8"])
    assert (turned.dtype, turned.asked) == ("bfloat16", True)
    kept = found(of("mxfp4"), H100_KERNELS, "inference", dequantize_stored=["fp8"])
    assert (kept.dtype, kept.asked) == ("", False)
    assert "dequantize-unused" not in problems(dequantize_stored=["fp8"])
    assert "no-dequantize" not in problems(of("gptq", bits=4), dequantize_stored=["fp8"])


def test_a_profiles_width_that_a_stored_format_overrules_is_told() -> None:
    plan = planned(of("fp8"), "qlora", machine=A100)
    (other,) = plan.why("quantization").instead_of
    assert (other.plugin, other.value.bits) == ("bitsandbytes", 4)
    assert "instead of bitsandbytes 4-bit" in plan.explained()
    assert "quantized-already" in problems(of("fp8"), machine=A100, load_in_4bit=True)


def test_a_missing_package_is_a_problem_of_the_plan() -> None:
    told = problems(of("gptq", bits=4))["format-needs-package"]
    assert "pip install 'optimum>=1.24.0' 'gptqmodel>=1.4.3'" in told
    old = msgspec.structs.replace(CPU, packages={**PACKAGES, "compressed-tensors": "0.9.0"})
    assert (
        "here is compressed-tensors 0.9.0"
        in problems(of("compressed-tensors"), machine=old)["format-needs-package"]
    )


def test_a_device_that_it_cannot_do_without() -> None:
    assert "no NVIDIA GPU" in problems(of("vptq"))["format-needs-device"]
    assert "capability 9.0" in problems(of("fbgemm_fp8"), machine=A100)["format-needs-device"]
    assert "format-needs-device" in problems(of("spqr"), machine=MPS)


def test_a_dtype_that_its_kernels_do_not_compute_in() -> None:
    awq = gpu("NVIDIA A100-SXM4-80GB", (8, 0), 80, packages={**PACKAGES, "gptqmodel": "5.0.0"})
    plan = planned(of("awq", bits=4), machine=awq)
    assert (plan.dtype, plan.why("dtype").plugin) == ("float16", "prequantized")
    assert "float16" in problems(of("awq", bits=4), machine=awq, dtype="bfloat16")["format-dtype"]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"quant_method": "modelopt"}, "ModelOpt"),
        ({"quant_method": "mxpf4"}, "did you mean 'mxfp4'?"),
        ({"bits": 4}, "doesn't name (quant_method)"),
    ],
)
def test_unknown_methods_are_refused(config: dict[str, Any], words: str) -> None:
    told = problems(checkpoint({**MISTRAL, "quantization_config": config}))
    assert words in told["unknown-format"]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"quant_method": "bitsandbytes"}, "neither load_in_4bit nor load_in_8bit"),
        ({"quant_method": "gptq", "load_in_4bit": True}, "which makes it bitsandbytes"),
        ({"quant_method": "gptq", "bits": 5}, "bits=5, which is 2 or 3 or 4 or 8"),
        ({"quant_method": "fp8", "activation_scheme": "tokenwise"}, "'dynamic' or 'static'"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, "two positive numbers"),
        ({"quant_method": "torchao", "quant_type": "int4_weight_only"}, "a config of torchao"),
        ({"quant_method": "awq", "version": "marlin"}, "version='marlin'"),
        ({"quant_method": "compressed-tensors", "sparsity_config": {"format": "dense"}}, "no config_groups"),
    ],
)
def test_a_config_that_its_class_refuses(config: dict[str, Any], words: str) -> None:
    assert words in problems(checkpoint({**MISTRAL, "quantization_config": config}))["format-config"]


def test_weights_that_load_and_cannot_compute_are_told() -> None:
    plan = planned(of("fp8"), machine=H100_FLASH)
    assert [w.code for w in plan.warnings] == ["format-needs-package"]
    assert "kernels" in plan.warnings[0].message
    assert planned(of("fp8"), machine=H100_KERNELS).warnings == ()
    assert planned(of("fp8"), machine=A100).warnings == ()


def test_an_adapter_over_layers_that_peft_does_not_wrap_is_refused() -> None:
    kernels = msgspec.structs.replace(A100, packages=KERNELS)
    assert "doesn't wrap" in problems(of("eetq"), "lora", machine=kernels)["format-cannot-train"]


@pytest.mark.parametrize(
    ("kind", "trains"),
    [("Int8WeightOnlyConfig", True), ("Int4WeightOnlyConfig", False), ("FqnToConfig", False)],
)
def test_torchao_goes_by_the_name_of_the_whole(kind: str, trains: bool) -> None:
    inner = {"_default": {"_type": "Int8WeightOnlyConfig"}}
    config = {"default": {"_type": kind, "_data": {"fqn_to_config": inner}}}
    machine = msgspec.structs.replace(CPU, packages={**PACKAGES, "torchao": "0.18.0"})
    assert found(of("torchao", quant_type=config), machine).trains == trains


def test_methods_that_transformers_does_not_load() -> None:
    for method in ("hqq", "nvfp4"):
        assert "doesn't load" in problems(of(method))["unreadable-format"]


def test_packed_layers_take_no_adapter() -> None:
    packages = {**PACKAGES, "compressed-tensors": "0.20.0"}
    machine = msgspec.structs.replace(CPU, packages=packages)
    weights = {"num_bits": 4, "type": "int"}
    packed = of("compressed-tensors", format="pack-quantized", config_groups={"a": {"weights": weights}})
    assert "dequantize=True" in problems(packed, "lora", machine=machine)["format-cannot-train"]
    plan = planned(packed, machine=machine)
    assert plan.quantization is not None
    assert plan.quantization.bits == 4
    assert "turned back in the first forward pass" in " ".join(plan.explained().split())
    assert [p.code for p in plan.warnings] == ["format-grows"]


def test_every_method_is_planned_or_refused_by_name() -> None:
    """Whatever the machine: nobody meets "0-bit (stored)", or an error of transformers'."""
    for method in METHODS:
        for machine in (CPU, T4, A100, H100_FLASH, MPS):
            if method.name == "gguf":
                continue
            try:
                plan = planned(of(method.name), machine=machine)
            except Exception as error:
                assert method.name in str(error)  # noqa: PT017 - either is right, and both are looked at
            else:
                assert " 0-bit" not in plan.explained()
