"""Further keyword arguments that belong to a stage or to the core, by themselves or in nested configs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from loadkit.errors import Problem
from loadkit.facts.context import Context
from loadkit.schema.stages import OWNED_KWARGS, stage_named

__all__ = ["owned", "owned_within"]

ELSEWHERE = ("config", "revision", "subfolder", "token", "variant", "state_dict", "device_mesh")
"""Owned names that nested configs may use for something of their own."""


def owned(key: str, plugin: str) -> Problem:
    """The problem of a keyword argument that isn't free to give.

    Parameters:
        key: its name, with the path to it where it is in a nested config.
        plugin: who contributed it.
    """
    name = key.rpartition(".")[2]
    owner = OWNED_KWARGS[name]
    stage = stage_named(owner)
    return Problem(
        "kwargs",
        plugin,
        "owned-kwarg",
        f"{key!r} was given as a further keyword argument, but it belongs to the {owner} "
        + ("stage" if stage else "step, which decides it itself"),
        f"give it as an option of its own ({stage.option}=…) rather than in model_kwargs"
        if stage
        else f"leave {key} out of model_kwargs"
        + ("; tp_plan and tp_size are options of their own" if owner == "engine" else ""),
    )


def owned_within(key: str, value: Any, plugin: str, context: Context) -> Iterator[Problem]:
    """Such arguments in a nested config, where they say something else than the checkpoint and the class do.

    A whole nested config, as `to_dict()` gives it, says again what is there: that asks for nothing.
    """
    library, config = context.library, context.checkpoint.config
    family = library.families.get(library.model_type_of(config))
    stored = config.get(key)
    known = family.config.sub_config_classes if family is not None else {}
    if not isinstance(value, Mapping) or not (
        key in known or (isinstance(stored, Mapping) and "model_type" in stored)
    ):
        return
    there: Mapping[str, Any] = stored if isinstance(stored, Mapping) else {}
    kind = there.get("model_type")
    facts = (
        library.sub_config(family.config, key, kind if isinstance(kind, str) else "")
        if family is not None
        else None
    )
    by_class = {} if facts is None else {"model_type": facts.model_type, **facts.fields}
    for name, given in value.items():
        if name not in OWNED_KWARGS or name in ELSEWHERE or given in (None, "", [], {}):
            continue
        if given not in (there.get(name), by_class.get(name), *_spelt_otherwise(name, there)):
            yield owned(f"{key}.{name}", plugin)


def _spelt_otherwise(name: str, there: Mapping[str, Any]) -> list[Any]:
    """What the checkpoint has under the other of the two names for the dtype."""
    return [there.get(each) for each in ("dtype", "torch_dtype")] if name in ("dtype", "torch_dtype") else []
