"""Which modules and parameters an adapter's settings name; one that names nothing is an error. Not a plugin itself."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from loadkit import Context, LoadError, ModelClass
from loadkit.plugins import did_you_mean, input_embeddings, output_embeddings, tower_keys

__all__ = ["absent", "check_targets", "new_token_rows", "paths", "towers", "unadaptable", "words"]

MAMBA = ("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h")
"""Model types of which PEFT 0.21 refuses to adapt the output projection (`_check_lora_target_modules_mamba`)."""

OTHERWISE = re.compile(r"Router|Grouped")
"""Names of subclasses of Linear that return something else than a product of their input: PEFT wraps them all the same."""


def unadaptable(context: Context) -> dict[str, str]:
    """Linear layers that "all-linear" means and LoRA can't adapt, by the ends of their paths, each with the reason."""
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


def words(context: Context, architecture: ModelClass) -> frozenset[str]:
    """What parts of the model's paths are called, by headers and source; empty where neither tells all of them."""
    tensors = context.checkpoint.tensors
    if not tensors or architecture.implementation == "plugin":
        return frozenset()
    stored = {part for name in tensors for part in name.split(".") if not part.isdigit()}
    families = context.library.families.values()
    made = {name for family in families for facts in family.modules.values() for name in facts.members}
    return frozenset(stored | made)


def absent(names: Iterable[str], context: Context, architecture: ModelClass) -> list[str]:
    """Those of some names, paths or their last parts, that no module and no parameter can have.

    Only the parts of a name are looked for: loading may put them together otherwise than the files.
    """
    known = words(context, architecture)
    parts = {name: [part for part in name.split(".") if not part.isdigit()] for name in names}
    return [name for name, own in parts.items() if known and not known.issuperset(own)]


def paths(context: Context, architecture: ModelClass) -> list[str]:
    """The paths of the modules that hold weights; empty where loading may call them otherwise than the files."""
    checkpoint, library = context.checkpoint, context.library
    kind, stacked = checkpoint.model_type, library.conversions
    renamed = architecture.key_mapping or kind in stacked or kind in stacked.values()
    if renamed or architecture.implementation == "plugin" or architecture.task != "causal-lm":
        return []
    if context.towers(architecture).paths:
        return []
    stored = {name.rpartition(".")[0] for name in checkpoint.tensors}
    return sorted(stored | {f"{prefix}.{name}" for prefix in ("model", "transformer") for name in stored})


def check_targets(model: Any, options: Mapping[str, Any]) -> None:
    """Refuse settings that name nothing. PEFT is content where one of several names is found.

    Parameters:
        model: the bare model.
        options: fields of a PEFT config: `target_modules`, `modules_to_save`, `target_parameters`.

    Raises:
        LoadError: a name or pattern matches no module or parameter.
    """
    modules = [name for name, _ in model.named_modules() if name]
    parameters = [name for name, _ in model.named_parameters()]
    wrong = [
        *_unmatched("target_modules", options, modules),
        *_unmatched("modules_to_save", options, modules),
        *_unmatched("target_parameters", options, parameters),
    ]
    if wrong:
        raise LoadError(
            f"the adapter can't be attached to {type(model).__name__}: {'; '.join(wrong)}\n"
            '    fix: a target is a module\'s path or its last parts, a pattern that matches whole paths, or "all-linear"'
        )


def _unmatched(field: str, options: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    given = options.get(field)
    if not given or given == "all-linear":
        return []
    if isinstance(given, str):
        if any(re.fullmatch(given, name) for name in names):
            return []
        hint = _nearest(given, names) if re.fullmatch(r"[\w.]+", given) else ""
        return [f"{field}: the pattern {given!r} matches nothing{hint}"]
    missing = [each for each in given if not any(n == each or n.endswith(f".{each}") for n in names)]
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


def towers(model: Any) -> list[str]:
    """Names of the submodels beside the text one: vision and audio towers, which LoRA leaves alone."""
    config = model.config
    text = config.get_text_config()
    nested = {key: part for key in config.sub_configs if (part := getattr(config, key, None)) is not None}
    beside = [
        nested[k] for k in tower_keys(nested, next((k for k, part in nested.items() if part is text), ""))
    ]
    return [
        name
        for name, module in model.named_modules()
        if name and any(getattr(module, "config", None) is part for part in beside)
    ]


def _listed(value: Any) -> list[str]:
    return list(value) if isinstance(value, list | tuple | set) else []
