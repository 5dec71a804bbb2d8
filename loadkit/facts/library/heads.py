"""What a class has beside its base model: the layers of its task's head, by the source."""

from __future__ import annotations

from collections.abc import Mapping

from loadkit.facts.library.library import Library
from loadkit.schema.values import HEADED_TASKS, ModelClass

__all__ = ["head_layers"]


def head_layers(library: Library, model: ModelClass) -> Mapping[str, tuple[str, ...]]:
    """The members of a classifier's head, each to its linear layers' paths: {"pooler": ("pooler.dense",)}.

    Parameters:
        library: the source of transformers, as far as it is the model's.
        model: the class; of a task without a head, or code that isn't transformers', nothing is known.
    """
    if model.task not in HEADED_TASKS or model.implementation != "transformers":
        return {}
    modules = {n: facts for family in library.families.values() for n, facts in family.modules.items()}
    own = modules[model.model_class].members if model.model_class in modules else {}
    found = {}
    for name, classes in own.items():
        if any(each.endswith("Model") for each in classes):
            continue
        inner = [
            f"{name}.{member}"
            for each in classes
            for member, kinds in (modules[each].members.items() if each in modules else ())
            if "Linear" in kinds
        ]
        if layers := (name,) if "Linear" in classes else tuple(inner):
            found[name] = layers
    return found
