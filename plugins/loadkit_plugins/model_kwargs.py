"""Whether what model_kwargs has is taken: by `from_pretrained`, the config, or the model's class."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from loadkit import Context, Plan, Problem
from loadkit.plugins import ConfigFacts, did_you_mean, fits, some_of
from loadkit_plugins.rope import WITHIN_ROPE, check_rope, config_class, moved_into_rope

__all__ = ["check_model_kwargs", "config_problems"]

NAME = "from-pretrained"

_problem = partial(Problem, "kwargs", NAME)

ROPE = ("rope_parameters", "rope_scaling")

ACTIVATION = re.compile(r"(^|_)(act|activation|activation_function)$")
"""Fields that name an activation function."""

KERNELS = ((0, 18, 2), (0, 19))
"""The lowest version of the package kernels that transformers 5.23 takes, and the first that it doesn't."""

OBJECTS = ("distributed_config", "generation_config", "kernel_config", "tqdm_class")
"""Arguments that take an object of a class, which plain data can't stand for."""


def check_model_kwargs(context: Context, plan: Plan) -> Iterator[Problem]:
    """Keys of model_kwargs that nobody takes, and values of a type that their field doesn't."""
    asked = context.request.asked("model_kwargs")
    if asked is None:
        return
    decided = {d.stage for d in plan.decisions if not any(o.plugin != NAME for o in d.instead_of)}
    passed_on = moved_into_rope(context, asked.value)
    given = {name: value for name, value in passed_on.items() if f"kwargs.{name}" in decided}
    keywords = context.library.keywords
    own = {name: value for name, value in given.items() if name in keywords.taken}
    for name, value in own.items():
        if name not in keywords.ignored and value is not None and not fits(keywords.taken[name], value):
            yield _wrong_type(asked.by, name, value, keywords.taken[name])
        if name in OBJECTS and value is not None:
            yield _problem(
                "bad-model-kwarg",
                f"{asked.by} gave {name}={value!r} in model_kwargs, and from_pretrained takes an object there, not its values",
                "leave it out, and set it on the loaded model",
            )
    if given.get("use_kernels"):
        yield from _kernels(context, asked.by)
    for name in sorted(given.keys() & set(keywords.ignored)):
        yield _problem(
            "keyword-ignored",
            f"{asked.by} gave {name}={given[name]!r} in model_kwargs, which transformers {context.library.version} takes and doesn't look at",
            "leave it out",
            severity="note",
        )
    facts = config_class(context) if plan.model_class.implementation == "transformers" else None
    if not keywords.taken:
        return
    rest = {name: value for name, value in given.items() if name not in own and name not in keywords.ignored}
    if facts is None:
        yield from _unchecked(context, rest, asked.by)
    else:
        arguments = _arguments(context, plan)
        stored = context.checkpoint.config
        yield from config_problems(context, facts, rest, stored, asked.by, arguments=arguments)


def _kernels(context: Context, by: str) -> Iterator[Problem]:
    """The package that layers' kernels come from isn't there, or is one that transformers doesn't take."""
    found = context.machine.version("kernels")
    if found is not None and KERNELS[0] <= found < KERNELS[1]:
        return
    lowest, below = (".".join(map(str, version)) for version in KERNELS)
    said = "isn't installed" if found is None else f"is {'.'.join(map(str, found))}"
    yield _problem(
        "no-kernels",
        f"{by} gave use_kernels=True in model_kwargs, and the package kernels {said}",
        f"pip install 'kernels>={lowest},<{below}', or give model_kwargs={{'use_kernels': False}}: the weights are the same",
    )


def _unchecked(context: Context, given: Mapping[str, Any], by: str) -> Iterator[Problem]:
    """For configs from elsewhere: only what config.json has is known to be a field."""
    known = context.checkpoint.config
    for name, value in given.items():
        if name not in known and name != "num_labels":
            yield _problem(
                "model-kwarg-unchecked",
                f"{by} gave {name}={value!r} in model_kwargs; config.json has no such field{did_you_mean(name, known)}, and whether the "
                "config's own class does can't be told before loading",
                "nothing need be done if it does; if not, loading fails",
                severity="warning",
            )


def config_problems(
    context: Context,
    facts: ConfigFacts,
    given: Mapping[str, Any],
    stored: Mapping[str, Any],
    by: str,
    *,
    arguments: Sequence[str] = (),
    within: str = "",
) -> Iterator[Problem]:
    """What a config of transformers' own, or one nested in another, doesn't take of what is given for it.

    Parameters:
        context: the facts.
        facts: the config's class.
        given: what is to be set.
        stored: what config.json has for it, whose further fields it takes too.
        by: who gave it.
        arguments: what the model's class takes beside its config.
        within: where the config is nested, with a dot behind; "" for the whole.
    """
    known = facts.names | stored.keys()
    for name, value in given.items():
        path = f"{within}{name}"
        if within and (name == "model_type" or name.startswith("_")):
            continue  # what a whole nested config has of its own, and the class that is there doesn't read
        if name in facts.sub_config_classes and isinstance(value, dict):
            below = stored.get(name)
            nested = below if isinstance(below, dict) else {}
            kind = nested.get("model_type")
            inner = context.library.sub_config(facts, name, kind if isinstance(kind, str) else "")
            if inner is not None:
                yield from config_problems(context, inner, value, nested, by, within=f"{path}.")
        elif name in ROPE and "rope_parameters" in facts.fields and isinstance(value or {}, dict):
            said = f"{by} gave {path} in model_kwargs"
            yield from check_rope(context, value, stored, said, completed=name != "rope_parameters")
        elif name not in known and name not in arguments:
            yield _unknown(context, facts, name, value, by, within)
        elif not fits(kind := facts.types.get(facts.attribute_map.get(name, name), ""), value):
            yield _wrong_type(by, path, value, kind)
        else:
            yield from _out_of_reach(
                context,
                facts,
                {**stored, **given},
                name,
                value,
                f"{by} gave {path}={value!r} in model_kwargs",
            )


def _out_of_reach(
    context: Context, facts: ConfigFacts, config: Mapping[str, Any], name: str, value: Any, said: str
) -> Iterator[Problem]:
    """Values of the right type that stand for something that isn't there."""
    activations, rows = (
        context.library.keywords.activations,
        config.get("vocab_size", facts.fields.get("vocab_size")),
    )
    if ACTIVATION.search(name) and isinstance(value, str) and activations and value not in activations:
        yield _problem(
            "bad-model-kwarg",
            f"{said}, and transformers {context.library.version} has no activation of that name{did_you_mean(value, activations)}",
            f"it has {some_of(activations, 40)}",
        )
    if (
        name.endswith("_token_id")
        and isinstance(value, int)
        and isinstance(rows, int)
        and value >= rows
        and value != facts.fields.get(name)
    ):
        yield _problem(
            "bad-model-kwarg",
            f"{said}, and the vocabulary has {rows:,} tokens, counted from 0",
            "name a token that is there; pad_token and eos_token are options of their own",
        )


def _arguments(context: Context, plan: Plan) -> tuple[str, ...]:
    """What the model's class takes beside its config."""
    found = context.library.class_facts(plan.model_class.model_class)
    return () if found is None else found.arguments


def _wrong_type(by: str, path: str, value: Any, kind: str) -> Problem:
    return _problem(
        "bad-model-kwarg",
        f"{by} gave {path}={value!r} in model_kwargs, a {type(value).__name__}; it takes {kind.replace('|', 'or')}",
        "give a value of that type",
    )


def _unknown(context: Context, facts: ConfigFacts, name: str, value: Any, by: str, within: str) -> Problem:
    keywords = context.library.keywords
    nested = [
        key
        for key in facts.sub_config_classes
        if (inner := context.library.sub_config(facts, key)) is not None and name in inner.names
    ]
    taken = () if within else keywords.taken
    moved = WITHIN_ROPE if "rope_parameters" in facts.fields else ()
    near = "" if name in moved else did_you_mean(name, [*facts.fields, *facts.attribute_map, *taken, *moved])
    if nested:
        remedy = (
            f"it is a field of a nested config: give model_kwargs={{{nested[0]!r}: {{{name!r}: {value!r}}}}}"
        )
    elif name in moved:
        remedy = f"give it in rope_parameters={{'rope_type': 'default', {name!r}: {value!r}}}"
    elif name in keywords.generation:
        remedy = f"it is a setting of generation: give it to model.generate({name}=…), or set it on model.generation_config"
    else:
        some = sorted(field for field in facts.fields if not field.startswith("_"))
        remedy = f"fields of {facts.name} are {some_of(some, 40)}"
    return _problem(
        "unknown-model-kwarg",
        f"{by} gave {within}{name}={value!r} in model_kwargs, and {facts.name} of transformers {context.library.version} has no such "
        f"field{near}" + ("" if within else "; from_pretrained has no such argument either"),
        remedy,
    )
