"""Which parameters are packed beside the plain linear layers: stacks of experts, and whatever else a class
only multiplies with."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from loadkit import Context, ModelClass, Weight

__all__ = ["is_kept", "packable", "routers", "run_as_experts"]

WORTHWHILE = 0.05
"""Share of the weights that are multiplied with, below which what isn't a plain linear layer stays."""


def packable(
    context: Context, architecture: ModelClass, skipped: Sequence[str] = ()
) -> dict[str, dict[str, str]]:
    """A module's class to the parameters that can be packed, each to where the number of its matrices stands;
    nothing where the headers show that the files hold none, or hardly any: a model that transformers alone
    can read once it is saved is worth more.

    Parameters:
        context: the facts; of code that isn't transformers' own they know nothing.
        architecture: the class that loads the model.
        skipped: ends of paths that stay as they are.
    """
    if architecture.implementation != "transformers":
        return {}
    known = {
        name: facts.packable
        for family in context.library.families.values()
        for name, facts in family.modules.items()
        if facts.packable
    }
    weights = context.weights(architecture)
    if not weights:
        return known
    left = [weight for weight in weights if not is_kept(weight, skipped)]
    kept = {_owner(weight) for weight in weights} - {_owner(weight) for weight in left}
    held = sum(weight.count for weight in left if weight.multiplied)
    layers = sum(weight.count for weight in left if weight.kind == "linear")
    if held <= WORTHWHILE * (held + layers):
        return {}
    return {name: parameters for name, parameters in sorted(known.items()) if name not in kept}


def _owner(weight: Weight) -> str:
    return weight.multiplied.partition(".")[0]


def run_as_experts(context: Context, classes: Mapping[str, object]) -> list[str]:
    """Those of the classes whose forward pass `experts_implementation` chooses."""
    families = context.library.families.values()
    return [name for name in classes if any(f.modules[name].experts for f in families if name in f.modules)]


def routers(context: Context) -> Iterator[str]:
    """The ends of the paths of plain linear layers that choose experts: "gate.wg"."""
    for family in context.library.families.values():
        for class_name, facts in family.modules.items():
            homes = [
                attribute
                for other in family.modules.values()
                for attribute, classes in other.members.items()
                if class_name in classes
            ]
            yield from (f"{home}.{member}" for member in facts.routers for home in dict.fromkeys(homes))


LAYER = re.compile(r"[^.]+\.\d+\.[^\d]*$")
"""The end of a path, from the innermost numbered layer on."""


def is_kept(weight: Weight, ends: Sequence[str]) -> bool:
    """Whether a weight stays as it is, by the file's path or the model's: what leads to the layers has other
    names in some files, so of packed parameters the whole path from the layer on is enough."""
    if _ends_with(weight.module, ends) or _ends_with(weight.home, ends):
        return True
    layer = LAYER.search(weight.home) if weight.multiplied else None
    return layer is not None and any(f".{end}".endswith(f".{layer[0]}") for end in ends)


def _ends_with(module: str, ends: Sequence[str]) -> bool:
    return any(module == end or module.endswith(f".{end}") or f".{end}." in f".{module}." for end in ends)
