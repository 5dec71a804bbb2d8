"""Linear layers that PEFT can be told of by their weights alone.

On models like Mixtral and Qwen2-MoE, PEFT 0.21 takes a target called "gate_proj" for the single experts
that files of earlier days had, and adapts the stack in their place. A dense layer of that name, such as a
shared expert's, is never reached. Named as a parameter it is, and its tensors are saved under the same names:
so plain PEFT loads the adapter.
"""

from __future__ import annotations

import re
from typing import Any

from loadkit_plugins.adapter.older_peft import converts_targets

__all__ = ["name_by_parameter"]

PATTERNS = ("rank_pattern", "alpha_pattern")


def name_by_parameter(model: Any, options: dict[str, Any]) -> None:
    """Name linear layers by their weights where PEFT would take their names for experts'.

    Parameters:
        model: the bare model.
        options: fields of a LoRA config, changed: `target_modules` is a list of names.
    """
    names = options["target_modules"]
    taken = [name for name in names if _taken(model, options, name) and _linear(model, name)]
    if not taken:
        return
    options["target_modules"] = [name for name in names if name not in taken]
    found = [end for name in taken for end in _weights(model, options.get("exclude_modules") or (), name)]
    options["target_parameters"] = [*(options.get("target_parameters") or ()), *found]
    for field in PATTERNS:
        given = options.get(field) or {}
        more = {rf"({key})\.weight": value for key, value in given.items() if key.endswith(tuple(taken))}
        if more:
            options[field] = {**given, **more}


def _taken(model: Any, options: dict[str, Any], name: str) -> bool:
    """Whether PEFT replaces a target of this name."""
    import peft

    if not converts_targets():
        return False
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    config = peft.LoraConfig(target_modules=[name], r=int(options.get("r") or 8))
    try:
        convert_peft_config_for_transformers(config, model, None)
    except ValueError:  # of a pair, one alone
        return True
    return name not in set(config.target_modules)


def _linear(model: Any, name: str) -> list[str]:
    """The linear layers of a name; a router's class may be none."""
    import torch

    layers = {
        path.removesuffix(".base_layer"): None  # of an adapter beneath
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and ".lora_" not in path
    }
    return [path for path in layers if f".{path}".endswith(f".{name}")]


def _weights(model: Any, excluded: Any, name: str) -> list[str]:
    """The weights of the linear layers of a name: by their common end, where nothing else has it."""
    paths = (path.replace(".base_layer", "") for path, _ in model.named_parameters() if ".lora_" not in path)
    homes = [path.removesuffix(".weight") for path in paths if f".{path}".endswith(f".{name}.weight")]
    wanted = [path for path in _linear(model, name) if not _left_out(path, excluded)]
    return [f"{name}.weight"] if wanted == homes else [f"{path}.weight" for path in wanted]


def _left_out(path: str, excluded: Any) -> bool:
    """PEFT's own matching of modules that are left alone."""
    if isinstance(excluded, str):
        return re.fullmatch(excluded, path) is not None
    return any(path == each or path.endswith(f".{each}") for each in excluded)
