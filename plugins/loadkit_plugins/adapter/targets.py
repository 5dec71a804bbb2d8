"""Which modules and parameters an adapter's settings name; one that names nothing is an error."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from loadkit import Adapter, Context, LoadError, ModelClass
from loadkit.plugins import did_you_mean, input_embeddings, is_projector, output_embeddings, towers

__all__ = [
    "BY_TYPE",
    "EVERY_LINEAR",
    "RENAMED",
    "absent",
    "check_targets",
    "hidden_linears",
    "kept_apart",
    "linear_names",
    "new_token_rows",
    "nowhere",
    "owners_of",
    "renamed_way",
    "stored_paths",
    "unadaptable",
    "unfit",
    "words",
]

EVERY_LINEAR = "every-linear"
"""A target that stands for every linear layer by the last part of its path: no output embedding, no fused
experts, no router."""

BY_TYPE = "by-model-type"
"""A target that stands for those that PEFT has for the model's type; for a type that it doesn't know, for all
linear layers."""

RENAMED: Mapping[str, tuple[str, ...]] = {
    "mixtral": ("gate", "w1", "w2", "w3"),
    "qwen2_moe": ("gate", "gate_proj", "up_proj", "down_proj"),
}
"""Ways of storing experts to the names of modules that PEFT 0.21 takes for a router's or single experts', and
replaces by those of stacks (peft/utils/transformers_weight_conversion.py, `_convert_peft_config_moe`)."""

OF_ANOTHER_TASK = re.compile(r"For\w*(Classification|QuestionAnswering|MultipleChoice|Prediction)$")
"""Classes that no other model has within it, so that their heads are theirs alone."""

MAMBA = ("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h")
"""Model types whose output projection PEFT 0.21 refuses to adapt (`_check_lora_target_modules_mamba`)."""

OTHERWISE = re.compile(r"Router|Grouped")
"""Subclasses of Linear that PEFT wraps though they don't return a product of their input."""


def renamed_way(context: Context) -> str:
    """The way of storing experts by which PEFT renames targets; "" for none. A model of type qwen2_moe itself
    isn't in its table."""
    model_type = context.checkpoint.model_type
    return "mixtral" if model_type == "mixtral" else context.library.conversions.get(model_type, "")


def unadaptable(context: Context) -> dict[str, str]:
    """Linear layers of "all-linear" that LoRA can't adapt: the end of the path to the reason."""
    modules = {
        name: facts for family in context.library.families.values() for name, facts in family.modules.items()
    }
    odd = [name for name, facts in modules.items() if facts.linear and OTHERWISE.search(name)]
    found = {
        attribute: f"it is a {name}, which isn't a plain product"
        for facts in modules.values()
        for attribute, classes in facts.members.items()
        for name in odd
        if name in classes
    }
    if context.checkpoint.model_type in MAMBA:
        found["out_proj"] = "Mamba's fused kernels take its weight directly, so PEFT refuses to adapt it"
    return found


def owners_of(parameters: Sequence[str], context: Context, architecture: ModelClass) -> list[str]:
    """The linear layers whose weights are among an adapter's parameters: PEFT puts one adapter on a layer, by
    its name or by its parameter's."""
    return [
        weight.module
        for weight in context.weights(architecture)
        if weight.kind == "linear"
        and any(weight.name == p or weight.name.endswith(f".{p}") for p in parameters)
    ]


def linear_names(model: Any, left_out: Sequence[str]) -> list[str]:
    """The last parts of the paths of every linear layer, quantized ones too; a number is no name, and brings
    its parent's.

    Parameters:
        model: the bare model.
        left_out: paths of submodels that are left out.
    """
    output = output_embeddings(model)
    found: dict[str, None] = {}
    for whole, module in model.named_modules():
        path, name = whole.removesuffix(".base_layer"), type(module).__name__  # of an adapter beneath
        if ".lora_" in path:
            continue
        linear = is_linear(module)
        beside = any(path == each or path.startswith(f"{each}.") for each in left_out)
        if path and linear and module is not output and not beside and not OTHERWISE.search(name):
            parts = path.split(".")
            found[".".join(parts[-2:]) if parts[-1].isdigit() else parts[-1]] = None
    return sorted(found)


def is_linear(module: Any) -> bool:
    """Whether a module multiplies with a matrix, or wraps one that does. A class's name alone doesn't tell:
    every module of kimi_linear's has the word in it."""
    kind = type(module)
    if any(base.__name__ == "Linear" for base in kind.__mro__):
        return True
    if "Linear" not in kind.__name__:
        return False
    inside = list(module.children())
    wraps = len(inside) == 1 and not module._parameters and is_linear(inside[0])
    return wraps or _codes(module) is not None or getattr(getattr(module, "weight", None), "ndim", 0) > 1


def hidden_linears(model: Any) -> bool:
    """Whether there are linear layers that aren't torch's, which PEFT 0.21 adapts by name and doesn't count
    among "all-linear": those of GPTQ, AWQ and AQLM."""
    import torch

    return any(
        _codes(module) is not None and not isinstance(module, torch.nn.Linear) for module in model.modules()
    )


def _codes(module: Any) -> Any:
    """What a packed layer has in place of a weight; None for others."""
    return getattr(module, "qweight", getattr(module, "codes", None))


def unfit(model: Any, names: Sequence[str]) -> list[str]:
    """Paths that end in one of the names and hold no layer that LoRA can adapt, such as a wrapper around a
    linear layer."""
    import torch

    layers = (torch.nn.Linear, torch.nn.Embedding, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
    return [
        path
        for path, module in model.named_modules()
        if any(path == name or path.endswith(f".{name}") for name in names)
        and not isinstance(module, layers)
        and not hasattr(module, "weight")
        and _codes(module) is None
    ]


def absent(given: Any, names: Sequence[str]) -> list[str]:
    """Of a list of targets, those that end no name."""
    listed = [each for each in given if each != EVERY_LINEAR] if isinstance(given, list | tuple) else []
    return [each for each in listed if not any(n == each or n.endswith(f".{each}") for n in names)]


def words(context: Context, architecture: ModelClass) -> frozenset[str]:
    """What parts of the model's paths are called, by headers and source; empty where neither tells all."""
    tensors = context.checkpoint.tensors
    if not tensors or architecture.implementation == "plugin":
        return frozenset()
    stored = {part for name in tensors for part in name.split(".") if not part.isdigit()}
    families = context.library.families.values()
    made = {
        name
        for family in families
        for owner, facts in family.modules.items()
        if owner == architecture.model_class or not OF_ANOTHER_TASK.search(owner)
        for name in facts.members
    }
    return frozenset(stored | made)


def nowhere(names: Iterable[str], context: Context, architecture: ModelClass) -> list[str]:
    """Those of some names, paths or their last parts, that no module and no parameter can have.

    Only the parts of a name are looked for: loading may put them together otherwise than the files.
    """
    known = words(context, architecture)
    parts = {name: [part for part in name.split(".") if not part.isdigit()] for name in names}
    return [name for name, own in parts.items() if known and not known.issuperset(own)]


def stored_paths(context: Context, architecture: ModelClass) -> list[str]:
    """The paths of the modules that hold weights; empty where loading may call them otherwise."""
    checkpoint, library = context.checkpoint, context.library
    kind, stacked = checkpoint.model_type, library.conversions
    renamed = architecture.key_mapping or kind in stacked or kind in stacked.values()
    if renamed or architecture.implementation == "plugin" or architecture.task != "causal-lm":
        return []
    if context.towers(architecture).paths:
        return []
    stored = {name.rpartition(".")[0] for name in checkpoint.tensors}
    return sorted(stored | {f"{prefix}.{name}" for prefix in ("model", "transformer") for name in stored})


def check_targets(model: Any, options: Mapping[str, Any], *, partly: Sequence[str] = ()) -> None:
    """Refuse settings that name nothing. PEFT is content where one of several names is found.

    Parameters:
        model: the bare model.
        options: fields of a PEFT config: `target_modules`, `modules_to_save`, `target_parameters`.
        partly: fields of which only some names need be there, as a recipe's list is read by PEFT.

    Raises:
        LoadError: a name or pattern of a PEFT config's fields matches no module or parameter.
    """
    modules = [name for name, _ in model.named_modules() if name]
    parameters = [name.replace(".base_layer", "") for name, _ in model.named_parameters()]
    wrong = [
        *_unmatched("target_modules", options, modules, partly),
        *_unmatched("modules_to_save", options, modules, partly),
        *_unmatched("target_parameters", options, parameters, partly),
    ]
    if wrong:
        raise LoadError(
            f"the adapter can't be attached to {type(model).__name__}: {'; '.join(wrong)}\n"
            '    fix: a target is a module\'s path or its last parts, a pattern that matches whole paths, or "all-linear"'
        )


def _unmatched(
    field: str, options: Mapping[str, Any], names: Sequence[str], partly: Sequence[str]
) -> list[str]:
    given = options.get(field)
    if not given or given in ("all-linear", BY_TYPE):
        return []
    if isinstance(given, str):
        if any(re.fullmatch(given, name) for name in names):
            return []
        hint = _nearest(given, names) if re.fullmatch(r"[\w.]+", given) else ""
        return [f"{field}: the pattern {given!r} matches nothing{hint}"]
    missing = absent(list(given), names)
    if field in partly and len(missing) < len(given):
        return []
    return [f"{field} names {each!r}, which is nowhere{_nearest(each, names)}" for each in missing]


def _nearest(word: str, names: Iterable[str]) -> str:
    """The nearest among the names' last parts, as many of them as the word has."""
    depth = word.count(".") + 1
    return did_you_mean(word, {".".join(name.split(".")[-depth:]) for name in names})


def new_token_rows(model: Any, ids: Sequence[int], options: Mapping[str, Any]) -> dict[str, list[int]]:
    """Where the rows of new tokens train: in the input embeddings, and in an output head of its own.

    Parameters:
        model: the bare model, with its embeddings resized.
        ids: the new tokens.
        options: the LoRA settings: a module that they train whole or adapt already isn't listed.

    Returns:
        Module path to token ids, as PEFT's `trainable_token_indices` takes it.
    """
    inputs, outputs = input_embeddings(model), output_embeddings(model)
    wanted = [inputs] if outputs is None or outputs.weight is inputs.weight else [inputs, outputs]
    paths = {id(module): name for name, module in model.named_modules()}
    taken = [*_listed(options.get("modules_to_save")), *_listed(options.get("target_modules"))]
    return {
        path: list(ids)
        for module in wanted
        if module is not None
        if (path := paths[id(module)]) and not any(path == t or path.endswith(f".{t}") for t in taken)
    }


def kept_apart(model: Any, adapter: Adapter) -> list[str]:
    """Paths of the parts of a multimodal model that a new adapter leaves alone."""
    beside = towers(model)
    found = beside if adapter.exclude_vision else []
    modules = [name for name, _ in model.named_modules() if name] if beside and adapter.frozen_parts else []
    if "projector" in adapter.frozen_parts:
        found = [*found, *(name for name in modules if is_projector(name))]
    if "language-model" in adapter.frozen_parts:
        within = [*beside, *(name for name in modules if is_projector(name))]
        rest = (
            n
            for n in modules
            if not any(n == w or n.startswith(f"{w}.") or w.startswith(f"{n}.") for w in within)
        )
        found = [*found, *rest]
    return found


def _listed(value: Any) -> list[str]:
    return list(value) if isinstance(value, list | tuple | set) else []
