"""Which parameters are packed beside the plain linear layers: stacks of experts, and whatever else a class
only multiplies with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from loadkit import Context, ModelClass

__all__ = ["packable", "routers", "run_as_experts"]

WORTHWHILE = 0.05
"""Share of the weights that are multiplied with, below which what isn't a plain linear layer stays."""


def packable(context: Context, architecture: ModelClass) -> dict[str, dict[str, str]]:
    """A module's class to the parameters that can be packed, each to where the number of its matrices stands;
    nothing where the headers show that the files hold none, or hardly any: a model that transformers alone
    can read once it is saved is worth more.

    Parameters:
        context: the facts; of code that isn't transformers' own they know nothing.
        architecture: the class that loads the model.
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
    held = sum(weight.count for weight in weights if weight.multiplied)
    layers = sum(weight.count for weight in weights if weight.kind == "linear")
    return dict(sorted(known.items())) if held > WORTHWHILE * (held + layers) else {}


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
