"""What a request says about torchao: options of its own, or a `TorchAoConfig`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from loadkit import Request, Strength

__all__ = ["BITS", "INT4", "INT4_CAPABILITY", "INT8", "METHOD", "PACKING", "Wish", "described", "wish"]

METHOD = "torchao"
INT8, INT4 = "int8_weight_only", "int4_weight_only"
BITS: Mapping[str, int] = {INT8: 8, INT4: 4}

PACKING = "tile_packed_to_4d"
"""How int4 codes are packed: the one way for which torchao 0.18 needs no further package."""

GROUP = 128
"""torchao's own group size for int4."""

INT4_CAPABILITY = (8, 0)
"""torch's int4 kernel runs on tensor cores from sm80 on, where bfloat16 arithmetic begins too."""

TYPES = {"Int8WeightOnlyConfig": INT8, "Int4WeightOnlyConfig": INT4}


class Wish(NamedTuple):
    """What was asked for.

    Parameters:
        quant_type: a key of `BITS`.
        group_size: weights that share a scale; None for a whole row.
        skip: modules to leave alone.
        because: who asked.
        strength: how much it weighs.
    """

    quant_type: str
    group_size: int | None
    skip: tuple[str, ...]
    because: str
    strength: Strength


def wish(request: Request) -> Wish | None:
    """What was asked for most strongly; None where nobody asked for torchao."""
    skip = tuple(request.value("skip_modules", ()))
    own = request.asked("torchao_quant_type")
    whole = request.asked("quantization_config")
    if whole is not None and (own is None or own.strength.rank < whole.strength.rank):
        if whole.value.get("quant_method") != METHOD or isinstance(found := described(whole.value), str):
            whole = None
        else:
            kept = whole.value.get("modules_to_not_convert") or ()
            both = tuple(dict.fromkeys((*skip, *kept)))
            return Wish(*found, skip=both, because=whole.because, strength=whole.strength)
    if own is None:
        return None
    group = request.value("torchao_group_size", GROUP if own.value == INT4 else None)
    return Wish(own.value, group, skip, own.because, own.strength)


def described(config: Mapping[str, Any]) -> tuple[str, int | None] | str:
    """Type and group size of a `TorchAoConfig` as plain data; in words what is none of ours."""
    default = (config.get("quant_type") or {}).get("default") or {}
    name, data = str(default.get("_type", "")), default.get("_data") or {}
    if name not in TYPES:
        return f"its quant_type is {name or 'none'}"
    if config.get("include_input_output_embeddings"):
        return "it quantizes the embeddings"
    if TYPES[name] == INT4:
        packing, chosen = (
            data.get("int4_packing_format"),
            data.get("int4_choose_qparams_algorithm", {}).get("_data"),
        )
        if packing != PACKING or chosen not in (None, "TINYGEMM"):
            return f"it packs as {packing} with the algorithm {chosen}"
        return INT4, int(data.get("group_size", GROUP))
    granularity = data.get("granularity") or {}
    kind, inner = granularity.get("_type"), granularity.get("_data") or {}
    if kind == "PerGroup":
        return INT8, int(inner["group_size"])
    if kind == "PerRow" and inner.get("dim", -1) == -1:
        return INT8, None
    return f"its granularity is {kind}"
