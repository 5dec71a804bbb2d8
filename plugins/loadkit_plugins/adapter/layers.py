"""The layers that PEFT wrapped for an adapter, what they hold, and which its settings name."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from loadkit import Adapter

__all__ = [
    "WITHOUT_NAME",
    "adapted",
    "adapted_parameters",
    "biases",
    "expected",
    "expected_parameters",
    "free_modules",
    "of_layers",
    "parameters_of",
    "saved_whole",
]

PATTERNS = ("rank_pattern", "alpha_pattern", "n_frequency_pattern")
"""Fields that give some layers values of their own."""

OF_PARAMETERS = ("ParamWrapper", "TrainableTokensLayer")
"""PEFT's layers over something else than a module."""

COMPUTED = ("ADALORA", "OFT")
"""PEFT types whose layers have ranks that PEFT works out."""


WITHOUT_NAME = {"ADAPTION_PROMPT": ("adaption_prompt", "adaption_gate")}
"""Types whose parameters don't have the adapter's name in their path, to what they are called."""


def adapted(base: Any, adapter: Adapter) -> list[str]:
    """Paths of the modules that an adapter is in, not of parameters, nor of rows of tokens unless that is
    all; layers that are tied to such a one have none of their own."""
    rows = adapter.peft_type == "TRAINABLE_TOKENS"
    layers = _layers(base, adapter.name).items()
    own = ((path, layer) for path, layer in layers if not getattr(layer, "_tied_adapter", None))
    return sorted(path for path, layer in own if rows or type(layer).__name__ not in OF_PARAMETERS)


def parameters_of(adapter: Adapter, named: Sequence[tuple[str, Any]]) -> list[str]:
    """Names of an adapter's own parameters."""
    own = {adapter.name, *WITHOUT_NAME.get(adapter.peft_type, ())}
    return [name for name, _ in named if own & {*name.split(".")}]


def adapted_parameters(base: Any, name: str) -> dict[str, int]:
    """Paths of the parameters that an adapter of that name is in, to their axes; linear layers that PEFT
    knows by their weights are among them."""
    return {
        f"{_bare(path)}.{layer.parameter_name}": getattr(layer, "_param_ndim", 2)
        for path, layer in _layers(base, name).items()
        if type(layer).__name__ == "ParamWrapper"
    }


def expected_parameters(base: Any, config: Any) -> list[str]:
    """Paths of the parameters that PEFT's own matching takes for targets."""
    ends = tuple(f".{each}" for each in getattr(config, "target_parameters", None) or ())
    inside = re.compile(r"\.(lora_|modules_to_save|original_module)")
    names = (_bare(path) for path, _ in base.named_parameters() if not inside.search(path))
    return sorted({name for name in names if f".{name}".endswith(ends or ("\n",))})


def _bare(path: str) -> str:
    return path.replace(".base_layer", "")


def saved_whole(base: Any, name: str) -> list[str]:
    """Paths of the modules of which an adapter has a copy that trains whole."""
    from peft.utils.other import ModulesToSaveWrapper

    wrapped = ((p, m) for p, m in base.named_modules() if isinstance(m, ModulesToSaveWrapper))
    return sorted(path for path, module in wrapped if name in module.modules_to_save)


def expected(model: Any, base: Any, config: Any) -> list[str] | None:
    """Paths of the modules that PEFT's own matching takes for targets; None for types that wrap none, and
    where what is tied to a target is adapted too."""
    matches = getattr(getattr(model, "base_model", None), "_check_target_module_exists", None)
    if matches is None or not getattr(config, "target_modules", None):
        return None
    if getattr(config, "ensure_weight_tying", None):
        return None
    return sorted(path for path in _own_modules(base) if matches(config, path))


def free_modules(base: Any, config: Any) -> list[str]:
    """Paths of the modules that PEFT's config leaves neither alone nor to be trained whole."""
    left = getattr(config, "exclude_modules", None) or ()
    whole = list(getattr(config, "modules_to_save", None) or ())
    pattern = left if isinstance(left, str) else "|".join(rf"(.*\.)?{re.escape(each)}" for each in left)
    kept = "|".join(rf"(.*\.)?{re.escape(each)}(\..*)?" for each in whole)
    apart = [re.compile(each) for each in (pattern, kept) if each]
    return [path for path in _own_modules(base) if not any(each.fullmatch(path) for each in apart)]


def _own_modules(base: Any) -> list[str]:
    """Paths of the model's own modules, without what PEFT has put into them."""
    wrapped = sorted(
        path for path, module in base.named_modules() if path and hasattr(module, "adapter_layer_names")
    )
    inside = tuple(f"{path}." for path in wrapped)
    return [path for path, _ in base.named_modules() if path and not path.startswith(inside or ("\n",))]


def of_layers(
    adapter: Adapter, planned: Mapping[str, Any], base: Any, config: Any
) -> dict[str, tuple[Any, Any]]:
    """Fields that each wrapped layer keeps: to what was planned, and what is there (all of it where layers
    differ)."""
    layers = [*_layers(base, adapter.name).values()]
    if not layers or adapter.peft_type in COMPUTED:
        return {}
    patterns = [v for pattern in PATTERNS for v in (getattr(config, pattern, None) or {}).values()]
    found: dict[str, tuple[Any, Any]] = {}
    prefix = f"{adapter.peft_type.lower()}_"
    for held in sorted({held for layer in layers for held in getattr(layer, "other_param_names", ())}):
        # LoRA's are called as its fields are: "lora_bias" isn't "bias"
        field = held if held in planned or adapter.peft_type == "LORA" else held.removeprefix(prefix)
        value = planned.get(field)
        if isinstance(value, bool | float | str) or (
            isinstance(value, int) and value
        ):  # of 0, PEFT makes its own
            values = [_rate(_of(getattr(layer, held, None), adapter.name)) for layer in layers]
            values = [each for each in values if isinstance(each, bool | int | float | str)]
            found[field] = (value, _one([each for each in values if each not in patterns] or [value]))
    if adapter.peft_type == "LORA":
        found |= _lora(adapter, planned, layers, scaled=not patterns)
    return {field: both for field, both in found.items() if both[1] != []}


def biases(adapter: Adapter, named: Sequence[tuple[str, Any]]) -> list[str]:
    """Names of the base's biases that train with an adapter: all of them, or those of its layers."""
    asked = str(adapter.options.get("bias", "none"))
    ends = {"none": "\n", "all": ".bias"}.get(asked, ".base_layer.bias")
    apart = {adapter.name, "original_module"}  # the copy that is trained whole has taken the latter's place
    return [name for name, _ in named if name.endswith(ends) and not apart & set(name.split("."))]


def _lora(
    adapter: Adapter, planned: Mapping[str, Any], layers: list[Any], *, scaled: bool
) -> dict[str, tuple[Any, Any]]:
    """Dropout, and the scale that rank, alpha and rsLoRA make."""
    found: dict[str, tuple[Any, Any]] = {}
    dropouts = [_of(getattr(layer, "lora_dropout", None), adapter.name) for layer in layers]
    if "lora_dropout" in planned:
        rates = [_rate(dropout) for dropout in dropouts if dropout is not None]
        found["lora_dropout"] = (planned["lora_dropout"], _one(rates))
    rank, alpha = planned.get("r"), planned.get("lora_alpha")
    if scaled and rank and alpha and "use_rslora" in planned:
        scale = alpha / (math.sqrt(rank) if planned["use_rslora"] else rank)
        held = [_of(getattr(layer, "scaling", None), adapter.name) for layer in layers]
        agree = all(value is None or math.isclose(value, scale) for value in held)
        found["use_rslora"] = (planned["use_rslora"], planned["use_rslora"] if agree else _one(held))
    return found


def _layers(base: Any, name: str) -> dict[str, Any]:
    """Path to module, of those that PEFT wrapped and that hold something of this adapter."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {
        path: module
        for path, module in base.named_modules()
        if isinstance(module, BaseTunerLayer)
        and any(_of(getattr(module, each, None), name) is not None for each in module.adapter_layer_names)
    }


def _of(held: Any, name: str) -> Any:
    """What a layer keeps for an adapter; None where it keeps nothing for it."""
    try:
        return held[name]
    except (AttributeError, KeyError, TypeError):  # torch's ParameterDict raises the first
        return None


def _rate(held: Any) -> Any:
    """The rate of a dropout layer; 0 where there is an identity in its place."""
    return getattr(held, "p", 0.0) if hasattr(held, "forward") else held


def _one(values: list[Any]) -> Any:
    """The value that all have; else every different one."""
    different = list(dict.fromkeys(values))
    return different[0] if len(different) == 1 else different
