"""What a request says about bitsandbytes: options of its own, or fields of `quantization_config`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from loadkit import Asked, Context, Option, Request

__all__ = [
    "EIGHT_BIT",
    "FOUR_BIT",
    "METHOD",
    "PACKED_EXPERTS",
    "PACKED_METHODS",
    "PACKED_PARAMETERS",
    "FIELDS",
    "OFFLOAD",
    "SKIPPING",
    "UNSET",
    "declared_options",
    "eight_bit",
    "four_bit",
    "is_ours",
    "settings",
    "twice",
    "width",
]

METHOD = "bitsandbytes"
FOUR_BIT = (
    "bnb_4bit_quant_type", "bnb_4bit_use_double_quant", "bnb_4bit_compute_dtype", "bnb_4bit_quant_storage"
)  # fmt: skip
OFFLOAD = "llm_int8_enable_fp32_cpu_offload"
EIGHT_BIT = ("llm_int8_threshold", OFFLOAD, "llm_int8_has_fp16_weight")
SKIPPING = ("llm_int8_skip_modules", "modules_to_not_convert", "skip_modules")
FIELDS = (
    "quant_method", "load_in_4bit", "load_in_8bit", "_load_in_4bit", "_load_in_8bit", *FOUR_BIT, *EIGHT_BIT, *SKIPPING,
)  # fmt: skip
"""What a BitsAndBytesConfig holds (transformers 5.23 drops any other without a word), and skip_modules by its
other names."""
UNSET: Mapping[str, Any] = {
    "bnb_4bit_quant_type": "fp4",
    "bnb_4bit_compute_dtype": "float32",
    "bnb_4bit_quant_storage": "uint8",
    "llm_int8_threshold": 6.0,
}
"""What a BitsAndBytesConfig holds for the width that it isn't about: nobody asked for these."""
PACKED_METHODS = {4: "loadkit_bitsandbytes_4bit", 8: "loadkit_bitsandbytes_8bit"}
"""What a model with packed parameters beside linear layers is stored as: transformers alone can't read it."""
PACKED_EXPERTS = "packed"
"""The `experts_implementation` that walks packed stacks."""
PACKED_PARAMETERS = "packed_parameters"
"""Which those are: a module's class to its parameters, each to the attribute that counts its units or ""."""
DTYPES = ("bfloat16", "float16", "float32")


def is_ours(config: Mapping[str, Any]) -> bool:
    """Whether a quantization config is one of bitsandbytes: by any name of transformers', or by none."""
    return (config.get("quant_method") or METHOD) in (METHOD, f"{METHOD}_4bit", f"{METHOD}_8bit")


def declared_options() -> Sequence[Option]:
    """The plugin's own options."""

    def option(name: str, kind: str, line: str, **more: Any) -> Option:
        return Option(name=name, type=kind, help=line, stage="quantization", **more)

    return [
        option("load_in_4bit", "bool", "quantize to 4 bits with bitsandbytes"),
        option("load_in_8bit", "bool", "quantize to 8 bits with bitsandbytes"),
        option(
            "bnb_4bit_quant_type", "str", "4-bit code: nf4 (the default here) or fp4", choices=("nf4", "fp4")
        ),
        option(
            "bnb_4bit_use_double_quant",
            "bool",
            "quantize the 4-bit constants too",
            aliases=("use_bnb_nested_quant", "double_quant"),
        ),
        option(
            "bnb_4bit_compute_dtype",
            "str",
            "dtype of 4-bit arithmetic; by default the dtype of the weights",
            choices=DTYPES,
        ),
        option(
            "bnb_4bit_quant_storage",
            "str",
            "dtype that 4-bit data is packed in; by default uint8, under FSDP and ZeRO-3 the dtype of the weights",
            choices=("uint8", "int8", *DTYPES),
        ),
        option("llm_int8_threshold", "float", "8-bit: activations above it are computed in 16 bits"),
        option(
            OFFLOAD,
            "bool",
            "leave parts that the device map puts on the CPU or the disk unquantized, in either width",
        ),
        option("llm_int8_has_fp16_weight", "bool", "8-bit: keep 16-bit main weights"),
    ]


def settings(request: Request) -> dict[str, Asked]:
    """Every quantization setting in force: an option of its own, or a field of `quantization_config`."""
    names = ("load_in_4bit", "load_in_8bit", *FOUR_BIT, *EIGHT_BIT, "skip_modules")
    found = {name: asked for name in names if (asked := request.asked(name))}
    whole = request.asked("quantization_config")
    if whole is None or not is_ours(whole.value):
        return found
    four_bits = bool(whole.value.get("load_in_4bit"))
    other_width = EIGHT_BIT if four_bits else FOUR_BIT
    for field, value in whole.value.items():
        name = "skip_modules" if field in SKIPPING else field
        if name not in names or value is None:
            continue
        if value is False and not (four_bits and name == "bnb_4bit_use_double_quant"):
            continue
        if name in other_width and value == UNSET.get(name):
            continue
        if name == "skip_modules" and name in found:
            found[name] = _united(found[name], value, whole)
        elif name not in found or found[name].strength.rank < whole.strength.rank:
            found[name] = Asked(name=name, value=value, by=whole.by, strength=whole.strength)
    return found


def twice(request: Request) -> Iterator[tuple[str, str]]:
    """Settings that the caller gave twice with different values: in the config, and as an option."""
    whole = request.asked("quantization_config")
    if whole is None or not whole.demanded or not is_ours(whole.value):
        return
    an_object = "_load_in_4bit" in whole.value
    for name in ("load_in_4bit", "load_in_8bit", *FOUR_BIT, *EIGHT_BIT):
        asked, value = request.asked(name), whole.value.get(name)
        if asked is None or not asked.demanded or value is None or value == asked.value:
            continue
        if not (an_object and value in (False, UNSET.get(name))):  # a default of the class's, not a demand
            yield f"quantization_config({name}={value!r})", f"{name}={asked.value!r}"


def _united(one: Asked, more: Any, whole: Asked) -> Asked:
    """Modules to skip from both places: each list adds to the automatic one."""
    listed = [more] if isinstance(more, str) else list(more)
    stronger = max((one, whole), key=lambda asked: asked.strength.rank)
    value = list(dict.fromkeys((*one.value, *listed)))
    return Asked(name=one.name, value=value, by=stronger.by, strength=stronger.strength)


def width(wishes: Mapping[str, Asked]) -> Asked | None:
    """Which of the two widths is asked for most strongly; named "none" where both are spoken against."""
    both = [wishes[name] for name in ("load_in_4bit", "load_in_8bit") if name in wishes]
    if not both:
        return None
    top = max((asked.strength for asked in both), key=lambda s: s.rank)
    strongest = [asked for asked in both if asked.strength is top]
    for asked in strongest:
        if asked.value:
            return asked
    weaker = [asked for asked in both if asked.value and asked not in strongest]
    if weaker and all(asked.name != weaker[0].name for asked in strongest):
        return weaker[0]  # load_in_8bit=False says nothing against a profile's 4 bits
    first = strongest[0]
    return Asked(name="none", value=None, by=first.by, strength=top)


def four_bit(wishes: Mapping[str, Asked], dtype: str, context: Context) -> dict[str, Any]:
    def wish(name: str, default: Any) -> Any:
        return wishes[name].value if name in wishes else default

    storage = dtype if context.topology.shards_parameters else "uint8"
    return {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": wish("bnb_4bit_quant_type", "nf4"),
        "bnb_4bit_use_double_quant": wish("bnb_4bit_use_double_quant", False),
        "bnb_4bit_compute_dtype": wish("bnb_4bit_compute_dtype", dtype),
        "bnb_4bit_quant_storage": wish("bnb_4bit_quant_storage", storage),
        **({OFFLOAD: True} if wish(OFFLOAD, False) else {}),
    }


def eight_bit(wishes: Mapping[str, Asked]) -> dict[str, Any]:
    found = {name: wishes[name].value for name in EIGHT_BIT if name in wishes}
    threshold = found.get("llm_int8_threshold")  # BitsAndBytesConfig refuses an int
    return {
        "load_in_8bit": True,
        **found,
        **({"llm_int8_threshold": float(threshold)} if type(threshold) is int else {}),
    }
