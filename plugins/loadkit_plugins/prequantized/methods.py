"""The quantization methods that transformers knows, as data.

Read off `transformers/quantizers/` of the version below; a test asks the quantizer classes of the installed
one.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from loadkit_plugins.prequantized.config_fields import PAIR, TORCHAO
from loadkit_plugins.prequantized.method import Method

__all__ = ["KERNELS", "METHODS", "SOURCE", "UNREADABLE", "methods_named"]

SOURCE = "transformers 5.23"
"""Whose quantizers these are."""


ACCELERATE = "accelerate>=1.1.0"
KERNELS = "kernels>=0.18.2,<0.19.0"
PEFT_GPTQMODEL = "gptqmodel>=7.0.0"
CUDA, CUDA_XPU = ("cuda",), ("cuda", "xpu")
HALF = ("float16", "bfloat16")
NO_ADAPTER = "PEFT 0.21 doesn't wrap its layers"
TRAINABLE = {"backend": "auto_trainable"}
"""gptqmodel takes a kernel without a backward pass where nobody asks for one that has it."""

_FP8 = Method(
    name="fp8",
    quantizer="FineGrainedFP8HfQuantizer",
    bits=8,
    needs=(ACCELERATE,),
    devices=CUDA_XPU,
    capability=(8, 9),
    turned_back=True,
    config="FineGrainedFP8Config",
    runs_with=(KERNELS,),
    accepts={
        "activation_scheme": ("dynamic", "static"),
        "weight_block_size": PAIR,
        "scale_fmt": ("float", "ue8m0"),
        "expert_dtype": ("fp8", "fp4"),
    },
    vanishing=(".weight_scale_inv", "_scale_inv", ".activation_scale", ".qscale_weight"),
)

METHODS: tuple[Method, ...] = (
    Method(name="aqlm", quantizer="AqlmHfQuantizer", needs=(ACCELERATE, "aqlm"), trains_from="aqlm>=1.0.2"),
    Method(
        name="auto-round",
        quantizer="AutoRoundQuantizer",
        needs=("auto-round>=0.5.0",),
        accepts={"bits": (2, 3, 4, 5, 6, 7, 8)},
        trains=False,
    ),
    Method(
        name="awq",
        quantizer="AwqQuantizer",
        needs=(ACCELERATE, "gptqmodel"),
        accepts={
            "version": ("gemm", "gemv", "gemv_fast", "llm-awq"),
            "format": ("gemm", "gemv", "gemv_fast", "llm-awq"),
        },
        trains_from=PEFT_GPTQMODEL,
        trains_set=TRAINABLE,
        dtypes=("float16", "float32"),
    ),
    Method(
        name="bitnet",
        quantizer="BitNetHfQuantizer",
        bits=2,
        needs=(ACCELERATE,),
        floats_with={"linear_class": "autobitlinear"},
        accepts={"linear_class": ("bitlinear", "autobitlinear"), "quantization_mode": ("online", "offline")},
        packing={".weight": 4},
        trains_with={"linear_class": "autobitlinear", "quantization_mode": "online"},
    ),
    Method(
        name="bitsandbytes",
        quantizer="Bnb4BitHfQuantizer",
        needs=(ACCELERATE, "bitsandbytes>=0.46.1"),
    ),
    Method(
        name="compressed-tensors",
        quantizer="CompressedTensorsHfQuantizer",
        needs=("compressed-tensors>=0.15.0",),
        config="CompressedTensorsConfig",
        packing={".weight_packed": 0},
        vanishing=(
            ".weight_scale",
            ".weight_zero_point",
            ".weight_global_scale",
            ".weight_shape",
            ".weight_g_idx",
            ".input_scale",
            ".input_zero_point",
            ".input_global_scale",
        ),
        later="turned back in the first forward pass",
    ),
    Method(
        name="eetq",
        quantizer="EetqHfQuantizer",
        bits=8,
        needs=(ACCELERATE, KERNELS),
        devices=CUDA,
        unadapted=NO_ADAPTER,
    ),
    Method(
        name="fbgemm_fp8",
        quantizer="FbgemmFp8HfQuantizer",
        bits=8,
        needs=(ACCELERATE, "fbgemm-gpu|fbgemm-gpu-genai"),
        elsewhere={"xpu": {"needs": (ACCELERATE, KERNELS)}},
        devices=CUDA_XPU,
        capability=(9, 0),
        trains=False,
        dtypes=("bfloat16",),
    ),
    Method(
        name="fouroversix",
        quantizer="FourOverSixHfQuantizer",
        bits=4,
        needs=("fouroversix",),
        trains_with={"keep_master_weights": True},
    ),
    _FP8,
    Method(
        name="fp_quant",
        quantizer="FPQuantHfQuantizer",
        bits=4,
        needs=("fp-quant>=0.3.2", "qutlass>=0.2.0"),
        devices=CUDA_XPU,
        trains_with={"store_master_weights": True},
        unadapted=NO_ADAPTER,
        dtypes=("bfloat16",),
    ),
    Method(
        name="gemma",
        quantizer="GemmaQuantizer",
        trains=False,
        saves=False,  # its `is_serializable` is a property, which `save_pretrained` calls
    ),
    Method(
        name="gguf",
        quantizer="GgufHfQuantizer",
        needs=("gguf>=0.10.0",),
        needs_kept=(KERNELS,),
        turned_back=True,
        config="GgufConfig",
        trains=False,
        saves=False,
    ),
    Method(
        name="gptq",
        quantizer="GptqHfQuantizer",
        needs=("optimum>=1.24.0", "gptqmodel>=1.4.3"),
        saves=False,  # gptqmodel 7.7 moves the zero points while loading, and they are saved moved
        accepts={"bits": (2, 3, 4, 8)},
        trains_from=PEFT_GPTQMODEL,
        trains_set=TRAINABLE,
    ),
    Method(
        name="higgs",
        quantizer="HiggsHfQuantizer",
        needs=(ACCELERATE, "flute-kernel>=0.4.1", "fast-hadamard-transform"),
        devices=CUDA,
        trains=False,
        dtypes=HALF,
    ),
    Method(
        name="hqq",
        quantizer="HqqHfQuantizer",
        needs=("hqq>=0.2.1",),
        devices=("cuda", "xpu", "mps", "npu"),
        unreadable="its quantizer has lost the operation that reads the weights",
    ),
    Method(
        name="metal",
        quantizer="MetalHfQuantizer",
        needs=(KERNELS,),
        devices=("mps",),
        turned_back=True,
        config="MetalConfig",
        accepts={"bits": (2, 4, 8)},
        packing={".weight": 0},
        vanishing=(".scales", ".qbiases"),
        trains=False,
    ),
    Method(
        name="mxfp4",
        quantizer="Mxfp4HfQuantizer",
        bits=4,
        needs=(ACCELERATE,),
        needs_kept=("triton>=3.4.0", KERNELS),
        elsewhere={"xpu": {"needs_kept": ("triton>=3.5.0", KERNELS)}},
        devices=CUDA_XPU,  # on a CPU with use_kernels=True alone, which loadkit doesn't pass
        capability=(7, 5),
        turned_back=True,
        config="Mxfp4Config",
        packing={"_blocks": 2},
        vanishing=("_scales",),
        trains=False,
    ),
    msgspec.structs.replace(_FP8, name="mxfp8"),
    Method(
        name="nvfp4",
        quantizer="NVFP4HfQuantizer",
        bits=4,
        needs=(KERNELS,),
        devices=CUDA,
        capability=(10, 0),
        trains=False,
        saves=False,
        unreadable="it makes these weights while loading, and doesn't read stored ones",
    ),
    Method(
        name="quanto",
        quantizer="QuantoHfQuantizer",
        needs=(ACCELERATE, "optimum", "optimum-quanto"),
        saves=False,
    ),
    Method(name="quark", quantizer="QuarkHfQuantizer", needs=("amd-quark>=0.12",), trains=False, saves=False),
    Method(
        name="sinq",
        quantizer="SinqHfQuantizer",
        needs=("sinq",),
        accepts={"method": ("sinq", "asinq")},
        unadapted=NO_ADAPTER,
    ),
    Method(
        name="spqr",
        quantizer="SpQRHfQuantizer",
        needs=(ACCELERATE, "spqr-quant"),
        devices=CUDA,
        trains=False,
        dtypes=("float16",),
    ),
    Method(
        name="torchao",
        quantizer="TorchAoHfQuantizer",
        needs=("torchao>=0.15.0",),
        accepts={"quant_type": TORCHAO},
    ),
    Method(
        name="vptq",
        quantizer="VptqHfQuantizer",
        needs=(ACCELERATE, "vptq>=0.0.4"),
        devices=CUDA,
        trains=False,
    ),
)
"""Every method of transformers, by name. bitsandbytes has a quantizer for 8 bits beside that for 4."""

UNREADABLE: Mapping[str, str] = {
    "modelopt": "NVIDIA's ModelOpt",
    "exl2": "ExLlamaV2",
    "exl3": "ExLlamaV3",
    "marlin": "vLLM's Marlin",
    "mlx": "Apple's MLX",
}
"""Methods met in config.json that transformers doesn't read, to whose they are."""


def methods_named() -> Mapping[str, Method]:
    """Method by `quant_method`."""
    return {method.name: method for method in METHODS}
