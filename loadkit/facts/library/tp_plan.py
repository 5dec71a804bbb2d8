"""How tensor parallelism would split a model, by the plans that transformers' classes declare."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from loadkit.facts.library.library import Library
from loadkit.facts.library.towers import Towers
from loadkit.facts.library.weight_roles import Weight
from loadkit.schema.values import ModelClass

__all__ = ["is_split", "read_tp_plan"]

SPLITTING = ("colwise", "rowwise", "packed_", "embedding_", "grouped_gemm")
"""Beginnings of the styles that give each process a part of the weight; the others only say how results are
put together (transformers 5.23: distributed/tensor_parallel.py)."""

NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)|^\d+(?=\.)")


def read_tp_plan(library: Library, model: ModelClass, changes: Any = "auto") -> dict[str, str]:
    """The plan by which transformers splits a class: rules of the configs, the class, and the embedding.

    Parameters:
        library: the source of transformers, as far as it is the checkpoint's.
        model: the class that loads it.
        changes: rules that replace or add to them; "auto" for none, an empty mapping for no rule at all.

    Returns:
        Path in the base model, with "*" for a layer's number, to style; empty where the architecture has no
        plan, or where its code isn't transformers'.
    """
    rules: dict[str, str] = {}
    if model.implementation == "transformers":
        for family in library.families.values():
            for config in (family.config, *family.configs.values()):
                if config.name == family.config.name:
                    rules |= config.tp_plan
        facts = library.class_facts(model.model_class)
        if rules:
            rules = {"embed_tokens": "embedding_rowwise", **rules, **(facts.tp_plan if facts else {})}
    if isinstance(changes, Mapping):
        rules = rules | {str(key): str(style) for key, style in changes.items()} if changes else {}
    return rules


def is_split(weight: Weight, rules: Mapping[str, str], towers: Towers) -> bool:
    """Whether each process holds a part of a weight only.

    Parameters:
        weight: as the file names it.
        rules: the plan.
        towers: the model's: a weight of theirs is split only where a rule names the tower.
    """
    path = NUMBER.sub("*", weight.module)
    single_expert = ".experts." in f"{path}."  # stacked while loading, under a name that may differ (mixtral)
    in_tower = towers.holds(weight.module)
    for key, style in rules.items():
        if not style.startswith(SPLITTING) or (in_tower and not towers.holds(key)):
            continue
        whole = path == key or path.endswith(f".{key}")
        if (whole or (single_expert and ".experts." in key)) and not (
            style.startswith("rowwise") and len(weight.shape) < 2
        ):
            return True
    return False
