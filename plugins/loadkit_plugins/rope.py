"""Rotary embeddings in model_kwargs: `rope_parameters`, and the fields that transformers 5 keeps there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from loadkit import Context, Problem
from loadkit.plugins import ConfigFacts, did_you_mean, fits

__all__ = ["WITHIN_ROPE", "check_rope", "config_class", "moved_into_rope"]

_problem = partial(Problem, "kwargs", "from-pretrained")

WITHIN_ROPE = ("rope_theta", "partial_rotary_factor")
"""Fields that configs of transformers 5 keep in `rope_parameters`, and checkpoints and recipes beside it."""

BY_ITSELF = ("original_max_position_embeddings", "rope_theta")
"""What transformers puts in where it is left out."""


def config_class(context: Context) -> ConfigFacts | None:
    """The class of the checkpoint's config; None where it isn't one of transformers' own."""
    family = context.library.families.get(context.library.model_type_of(context.checkpoint.config))
    return family.config if family is not None and context.registered is None else None


def moved_into_rope(context: Context, given: Mapping[str, Any]) -> dict[str, Any]:
    """What is given for a config of transformers 5, with `rope_theta` and its like where they are looked for.

    Given beside `rope_parameters`, from_pretrained takes them for arguments of the model's class, which
    refuses them.
    """
    facts = config_class(context)
    moved = {n: v for n, v in given.items() if n in WITHIN_ROPE and facts and n not in facts.fields}
    if facts is None or not moved or "rope_parameters" not in facts.fields:
        return dict(given)
    config = context.checkpoint.config
    own = given.get("rope_parameters") or config.get("rope_parameters") or config.get("rope_scaling") or {}
    if any(isinstance(value, dict) for value in own.values()):
        return dict(given)  # a set for each type of layer: which is meant isn't said
    beside = {name: config[name] for name in WITHIN_ROPE if config.get(name) is not None}
    whole = {"rope_type": own.get("type", "default"), **beside, **own, **moved}
    rest = {name: value for name, value in given.items() if name not in moved}
    return {**rest, "rope_parameters": whole}


def check_rope(
    context: Context,
    given: Mapping[str, Any] | None,
    stored: Mapping[str, Any],
    said: str,
    *,
    completed: bool,
) -> Iterator[Problem]:
    """What can't be about `rope_parameters`: one set of them, or one for each type of layer.

    Parameters:
        given: the parameters.
        stored: what config.json has of the config that they are for.
        said: who gave it, and what, for messages.
        completed: whether transformers puts the kind in where it is left out: as `rope_scaling` it does.
    """
    keywords = context.library.keywords
    own = stored.get("rope_parameters") or stored.get("rope_scaling") or {}
    known = {*keywords.rope, "type", *(own if isinstance(own, dict) else ())}
    if not keywords.rope or not keywords.rope_types:
        return
    if not given and ((given is None and not own) or stored.get("rope_parameters", ...) == given):
        return  # what config.json has may be repeated
    if not given:
        yield _problem(
            "bad-model-kwarg",
            f"{said}, which says nothing, and takes the place of all of them",
            "leave it out, or give rope_type and what that needs",
        )
        return
    sets: list[Mapping[str, Any]] = [value for value in given.values() if isinstance(value, dict)] or [given]
    for each in sets:
        for name, value in each.items():
            if name not in known:
                yield _problem(
                    "unknown-model-kwarg",
                    f"{said}, with {name!r}, which transformers {context.library.version} doesn't know there{did_you_mean(name, known)}",
                    f"it takes {', '.join(keywords.rope)}",
                )
            elif value is not None and not fits(keywords.rope.get(name, ""), value, loosely=True):
                yield _problem(
                    "bad-model-kwarg",
                    f"{said}, with {name}={value!r}, a {type(value).__name__}; it takes {keywords.rope[name].replace('|', 'or')}",
                    "give a value of that type",
                )
        kind = each.get("rope_type", each.get("type", "default") if completed else None)
        needed = keywords.rope_types.get(kind, ()) if isinstance(kind, str) else ()
        missing = [name for name in needed if name not in each and name not in ("rope_type", *BY_ITSELF)]
        if kind is None:
            yield _problem(
                "bad-model-kwarg",
                f"{said} without a rope_type; it takes the place of all of config.json's",
                "add rope_type='default', or another kind; rope_theta alone can be given as model_kwargs={'rope_theta': …}",
            )
        elif kind not in keywords.rope_types:
            yield _problem(
                "bad-model-kwarg",
                f"{said} with rope_type={kind!r}, and transformers {context.library.version} has no such kind{did_you_mean(str(kind), keywords.rope_types)}",
                f"it has {', '.join(sorted(keywords.rope_types))}",
            )
        elif missing:
            yield _problem(
                "bad-model-kwarg",
                f"{said} with rope_type={kind!r}, and without {', '.join(missing)}, which that kind needs",
                f"give {', '.join(missing)} too",
            )
