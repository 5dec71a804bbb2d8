"""What torchao makes of each weight, in bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from loadkit import Context, Packed, Plan, Quantization, Weight
from loadkit.plugins import FLOATS
from loadkit_torchao.settings import INT8, METHOD

__all__ = ["estimate", "quantized"]

INPUTS, OUTPUTS = 1024, 8
"""int4: weights are padded to multiples of these (torchao 0.18, tile_packed_to_4d)."""

SCALE, ZERO = 4, 1
"""int8: bytes of a float32 scale and of its zero point, which is kept though it is zero (torchao 0.18)."""


def estimate(context: Context, plan: Plan, weights: Sequence[Weight]) -> Mapping[str, Packed] | None:
    """The weights that get quantized to their bytes; None where torchao quantizes nothing while loading."""
    quantization = plan.quantization
    if quantization is None or quantization.method != METHOD or quantization.prequantized:
        return None
    size = _int8 if quantization.options["quant_type"] == INT8 else _int4
    return {
        w.name: size(w, quantization.options["group_size"])
        for w in quantized(context, plan, weights, quantization)
    }


def quantized(
    context: Context, plan: Plan, weights: Sequence[Weight], quantization: Quantization
) -> Iterator[Weight]:
    """Weights of linear layers and of their subclasses, but for what is left alone.

    GPT-2's Conv1D is no linear layer to torchao, and the output projection of torch's own MultiheadAttention
    is passed over.
    """
    facts = context.library.class_facts(plan.model_class.model_class)
    kept = quantization.skip_modules
    # transformers 5.23 compares these with the weight's whole path: they match from its beginning only.
    in_float32 = tuple(f"{path}." for path in (facts.keep_in_fp32_modules if facts else ()))
    others = set(_other_layers(context))
    torch_attention = {w.module for w in weights if w.name.endswith(".in_proj_weight")}
    for w in weights:
        if w.kind not in ("linear", "linear subclass") or len(w.shape) != 2 or w.dtype not in FLOATS:
            continue
        home, _, last = w.module.rpartition(".")
        if last in others or home in torch_attention or f"{w.module}.".startswith(in_float32):
            continue
        if _ends_with(w.module, kept):
            continue
        yield w


def _other_layers(context: Context) -> Iterator[str]:
    """What layers are called that hold a linear map, but whose class isn't torch's Linear."""
    for family in context.library.families.values():
        for facts in family.modules.values():
            for member, classes in facts.members.items():
                if "Conv1D" in classes and "Linear" not in classes:
                    yield member


def _ends_with(module: str, ends: Sequence[str]) -> bool:
    return any(f".{end}." in f".{module}." for end in ends)


def _int8(weight: Weight, group: int | None) -> Packed:
    rows, columns = weight.shape
    return Packed(data=weight.count, constants=rows * (columns // (group or columns)) * (SCALE + ZERO))


def _int4(weight: Weight, group: int | None) -> Packed:
    """Half a byte each, and a scale and a zero point in bfloat16 for each group."""
    rows, columns = (_padded(n, to) for n, to in zip(weight.shape, (OUTPUTS, INPUTS), strict=True))
    return Packed(data=rows * columns // 2, constants=rows * (columns // (group or columns)) * 4)


def _padded(count: int, to: int) -> int:
    return -(-count // to) * to
