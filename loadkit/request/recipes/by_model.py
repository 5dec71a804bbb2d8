"""What a stack does for some models only: settled when the checkpoint is known, as a recipe doesn't tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

__all__ = ["ByModel", "joined", "options_for"]


TEXT_PARTS = ("text_config", "llm_config")
"""Where config.json nests that of a text model."""


class ByModel(msgspec.Struct, frozen=True, kw_only=True):
    """Options that hold for some models.

    Parameters:
        model_types: the types; () for all.
        has: fields of config.json, or of the text model's part of it: one of them must be a positive number.
        below: fields of config.json to a number: one of them must be there, and less.
        options: option to value.
        over: whether they hold over what the recipe says.
        note: what to say then.
    """

    model_types: tuple[str, ...] = ()
    has: tuple[str, ...] = ()
    below: dict[str, int | float] = {}
    options: dict[str, Any] = {}
    over: bool = False
    note: str = ""

    def fits(self, model_type: str, config: Mapping[str, Any]) -> bool:
        """Whether a checkpoint's config.json is of such a model."""
        parts = [config, *(part for k in TEXT_PARTS if isinstance(part := config.get(k), Mapping))]
        return (
            (not self.model_types or model_type in self.model_types)
            and (not self.has or any(_positive(part.get(k)) for part in parts for k in self.has))
            and (not self.below or any(_less(config.get(k), than) for k, than in self.below.items()))
        )


def options_for(
    rules: Sequence[ByModel], given: Mapping[str, Any], model_type: str, config: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """The options that rules add for a checkpoint, and what to say of them.

    Parameters:
        rules: the recipe's.
        given: the options that the recipe has without them; lists and mappings among them grow.
        model_type: the checkpoint's, and `config` its config.json.
    """
    found: dict[str, Any] = {}
    notes = []
    for rule in rules:
        if not rule.fits(model_type, config):
            continue
        for option, value in rule.options.items():
            earlier = found.get(option, given.get(option))
            grown = value if earlier is None or rule.over else joined(earlier, value)
            if grown is not None:
                found[option] = grown
        notes += [rule.note] if rule.note else []
    return found, notes


def joined(first: Any, second: Any) -> Any:
    """Two lists or two mappings as one, a text beside a list as its one item; None where they can't be."""
    if {type(first), type(second)} == {str, list}:
        first, second = ([each] if isinstance(each, str) else each for each in (first, second))
    if isinstance(first, list) and isinstance(second, list):
        return [*first, *(each for each in second if each not in first)]
    if isinstance(first, dict) and isinstance(second, dict):
        same = all(first[key] == second[key] for key in first.keys() & second.keys())
        return first | second if same else None
    return None


def _positive(value: Any) -> bool:
    return isinstance(value, int) and value > 0


def _less(value: Any, than: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < than
