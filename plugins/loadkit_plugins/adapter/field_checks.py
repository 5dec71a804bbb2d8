"""Whether the fields of a new adapter's config are PEFT's, hold what they can, and name what is there."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from loadkit import Adapter, Context, Plan, Problem
from loadkit.plugins import did_you_mean, fits, some_of
from loadkit_plugins.adapter.config_refusals import check_config, in_words
from loadkit_plugins.adapter.fields import LORA_OPTIONS, adapter_type, contradictions, merged
from loadkit_plugins.adapter.layer_checks import check_layers
from loadkit_plugins.adapter.ranges import check_ranges
from loadkit_plugins.adapter.settings import TASK_TYPES
from loadkit_plugins.adapter.targets import BY_TYPE, EVERY_LINEAR, nowhere, stored_paths, words

__all__ = ["check_fields"]

_problem = partial(Problem, "adapter", "adapter")

NAMING = ("target_modules", "modules_to_save", "target_parameters", "exclude_modules")
KEYED = ("rank_pattern", "alpha_pattern")
NITER = re.compile(r"pissa_niter_\d+", re.IGNORECASE)
BY_END = ("ADAPTION_PROMPT",)
"""Types that take one name as the end of paths, where others take a pattern or a list."""
OTHER_INITS = ("lora_ga",)
"""Initialisations that PEFT 0.21 has and its annotation doesn't name."""


def check_fields(context: Context, plan: Plan, adapter: Adapter) -> list[Problem]:
    """Every problem of a new adapter's fields."""
    unknown = list(_unknown_type(context, adapter))
    if unknown:
        return unknown
    found = [
        *_twice(context),
        *_without_place(context),
        *_unknown(context, adapter),
        *_of_another_kind(context, adapter),
        *check_ranges(context, adapter, partial(_said, context, adapter)),
        *_together(adapter),
        *_frozen(context, plan, adapter),
        *_another_task(context, plan, adapter),
        *_named(context, plan, adapter),
    ]
    if found:
        return found
    said = partial(_said, context, adapter)
    return list(check_config(context, adapter, said)) or list(check_layers(context, plan, adapter, said))


def _who(context: Context, field: str) -> str:
    """Who asked for a field, and in which words."""
    asked = merged(context).by.get(field)
    if asked is None:
        return field
    spelt = "peft_config" if asked.name == "peft_config" else asked.name
    return f"{'you' if asked.demanded else asked.by} gave {spelt}"


def _said(context: Context, adapter: Adapter, field: str) -> str:
    who = _who(context, field)
    value = adapter.options[field]
    return f"{who}({field}={value!r})" if who.endswith("peft_config") else f"{who}={value!r}"


def _unknown_type(context: Context, adapter: Adapter) -> Iterator[Problem]:
    types = context.peft_types
    if types and adapter.peft_type not in types:
        yield _problem(
            "unknown-peft-type",
            f"the peft_config has peft_type={adapter.peft_type!r}, which the installed PEFT doesn't have{did_you_mean(adapter.peft_type, types)}",
            f"it has {', '.join(types)}",
        )


def _twice(context: Context) -> Iterator[Problem]:
    for config, option in contradictions(context):
        yield _problem(
            "option-twice",
            f"you gave {config} and {option}, which are one setting",
            f"keep {config} or {option}",
        )


def _without_place(context: Context) -> Iterator[Problem]:
    """LoRA's options beside a config of another type."""
    kind = adapter_type(context.request)
    if kind == "LORA":
        return
    fields = context.peft_fields(kind)
    lost = [
        name
        for name, field in LORA_OPTIONS.items()
        if (asked := context.request.asked(name)) and asked.demanded and field not in fields
    ]
    if lost:
        yield _problem(
            "lora-option-unused",
            f"you asked for {', '.join(lost)}, and the peft_config is one of {kind}, which has no such settings",
            f"leave {', '.join(lost)} out, or give a LoraConfig",
        )


def _unknown(context: Context, adapter: Adapter) -> Iterator[Problem]:
    fields = context.peft_fields(adapter.peft_type)
    for name in adapter.options:
        if fields and name not in fields:
            yield _problem(
                "unknown-field",
                f"{_said(context, adapter, name)}, and a PEFT config of {adapter.peft_type} has no such field{did_you_mean(name, fields)}",
                f"its fields are {', '.join(sorted(fields))}",
            )


def _of_another_kind(context: Context, adapter: Adapter) -> Iterator[Problem]:
    fields = context.peft_fields(adapter.peft_type)
    for name, value in adapter.options.items():
        facts = fields.get(name)
        if facts is None or value is None:
            continue
        if facts.choices and isinstance(value, str):
            if not _chosen(name, value, facts.choices):
                code = "unknown-init" if name.startswith("init_") else "bad-field"
                yield _problem(
                    code,
                    f"{_said(context, adapter, name)}, and PEFT has none of that name{did_you_mean(value, facts.choices)}",
                    f"choose one of {', '.join(facts.choices)}",
                )
        elif adapter.peft_type in BY_END and name == "target_modules" and not isinstance(value, str):
            yield _problem(
                "bad-field",
                f"{_said(context, adapter, name)}, a {type(value).__name__}; {adapter.peft_type} takes the end of a path there",
                "give one name, such as 'self_attn'",
            )
        elif not fits(facts.annotation, value, loosely=True) and not _number_anyway(name, value):
            yield _problem(
                "bad-field",
                f"{_said(context, adapter, name)}, a {type(value).__name__}; the field takes {in_words(facts.annotation)}",
                f"correct it: {name} is {facts.default!r} by default",
            )


def _chosen(name: str, value: str, choices: Sequence[str]) -> bool:
    if name != "init_lora_weights":
        return value in choices
    folded = {choice.casefold() for choice in choices if choice.casefold() in ("gaussian", "olora", "mica")}
    plain = [choice for choice in choices if "[" not in choice]  # one stands for a number of iterations
    return value in (*plain, *OTHER_INITS) or value.casefold() in folded or bool(NITER.fullmatch(value))


def _number_anyway(name: str, value: Any) -> bool:
    """Whether a field is annotated as an int, and computed with as a float."""
    return name in ("alpha", "lora_alpha") and isinstance(value, float)


def _together(adapter: Adapter) -> Iterator[Problem]:
    """What PEFT refuses of fields that are fine each on its own (its `LoraConfig.__post_init__`)."""
    options = adapter.options
    if adapter.peft_type != "LORA":
        return
    pattern = isinstance(options.get("target_modules"), str) and options["target_modules"] != "all-linear"
    for field in ("layers_to_transform", "layers_pattern"):
        if pattern and options.get(field) is not None:
            yield _problem(
                "fields-contradict",
                f"{field}={options[field]!r} goes with a list of target_modules, and {options['target_modules']!r} is a pattern",
                f"name the layers in the pattern, or leave {field} out",
            )
    if options.get("layers_pattern") and options.get("layers_to_transform") is None:
        yield _problem(
            "fields-contradict",
            f"layers_pattern={options['layers_pattern']!r} was given without layers_to_transform",
            "say which layers: layers_to_transform=[…]",
        )
    if str(options.get("init_lora_weights")).casefold() == "loftq" and not options.get("loftq_config"):
        yield _problem(
            "init-needs-config",
            "init_lora_weights='loftq' was asked for, and nothing says to how many bits",
            'give it in a config: peft_config={"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}, …}',
        )


def _frozen(context: Context, plan: Plan, adapter: Adapter) -> Iterator[Problem]:
    if plan.preparation.training and adapter.options.get("inference_mode"):
        yield _problem(
            "nothing-trains",
            f"{_said(context, adapter, 'inference_mode')}, which freezes the adapter, and the model is to train "
            f"({plan.why('preparation').because})",
            "give inference_mode=False: a config that was saved with an adapter has True in it",
        )


def _another_task(context: Context, plan: Plan, adapter: Adapter) -> Iterator[Problem]:
    task, given = plan.model_class.task, adapter.options.get("task_type")
    wanted = TASK_TYPES.get(task, "CAUSAL_LM")
    if given in (None, wanted):
        return
    known = context.peft_task_types
    other = next((t for t, name in TASK_TYPES.items() if name == given), "")
    if known and given not in known:
        said = f"which PEFT doesn't have{did_you_mean(str(given), known)}"
    else:
        said = f"and the model is loaded for {task} ({plan.why('architecture').because})"
    yield _problem(
        "peft-task-differs",
        f"{_said(context, adapter, 'task_type')}, {said}",
        f"give task_type={wanted!r} or none"
        + (f"; or task={other!r} for a model of that kind" if other else ""),
    )


def _named(context: Context, plan: Plan, adapter: Adapter) -> Iterator[Problem]:
    """Modules and parameters that are named and can't be there."""
    known = words(context, plan.model_class)
    for field in (*NAMING, *KEYED):
        given = adapter.options.get(field)
        if adapter.peft_type in BY_END and field == "target_modules" and isinstance(given, str):
            given = [given]
        if not given or given in ("all-linear", BY_TYPE, EVERY_LINEAR) or not known:
            continue
        if field in KEYED or isinstance(given, str):
            wrong = [p for p in ([given] if isinstance(given, str) else given) if _unmatchable(p, known)]
        else:
            names = [str(each) for each in given if each != EVERY_LINEAR]
            wrong = nowhere(names, context, plan.model_class)
            asked = merged(context).by.get(field)
            if asked is not None and not asked.demanded and len(wrong) < len(given):
                continue  # PEFT takes of a list what is there
        if isinstance(given, str) and (fault := _fault(given)):
            yield _problem(
                "bad-pattern",
                f"{_said(context, adapter, field)}, which isn't a regular expression: {fault}",
                "correct the pattern, or give a list of names",
            )
        elif (
            isinstance(given, str)
            and not wrong
            and (_whole_paths(given, stored_paths(context, plan.model_class)))
        ):
            listed = f"; a list means the ends of paths: [{given!r}]" if given in known else ""
            yield _problem(
                "target-matches-nothing",
                f"{_said(context, adapter, field)}: a text is a pattern for whole paths, and no module's whole path matches it",
                f"begin it with .* to match any path that ends so{listed}",
            )
        elif wrong:
            hints = [f"{each!r}{did_you_mean(each.rpartition('.')[2], known)}" for each in wrong]
            yield _problem(
                "target-matches-nothing",
                f"{_said(context, adapter, field)}, and nothing in {plan.model_class.model_class} is called {', '.join(hints)}",
                f"parts of its names are {some_of(sorted(_targets(context)), 24)}",
            )
    yield from _layers(context, adapter)


def _fault(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        return str(error)
    return ""


def _unmatchable(pattern: str, known: frozenset[str]) -> bool:
    """Whether a pattern needs a word that is in no part of any name; groups and choices aren't looked at."""
    if any(sign in pattern for sign in "|?[({"):
        return False
    plain = re.sub(r"\\.|\w[*]", " ", pattern)
    return any(not any(word in name for name in known) for word in re.findall(r"[^\W\d]\w*", plain))


def _whole_paths(pattern: str, modules: Sequence[str]) -> bool:
    """Whether a pattern matches none of the modules, where they are known."""
    return bool(modules) and not any(re.fullmatch(pattern, path) for path in modules)


def _targets(context: Context) -> set[str]:
    """What the modules of the weight files are called."""
    parts = (name.split(".") for name in context.checkpoint.tensors)
    return {part[-2] for part in parts if len(part) > 1 and not part[-2].isdigit()}


def _layers(context: Context, adapter: Adapter) -> Iterator[Problem]:
    given, count = (
        adapter.options.get("layers_to_transform"),
        context.checkpoint.text_config.get("num_hidden_layers"),
    )
    listed = [given] if isinstance(given, int) else given if isinstance(given, list) else []
    beyond = [i for i in listed if isinstance(i, int) and isinstance(count, int) and not 0 <= i < count]
    if beyond:
        yield _problem(
            "target-matches-nothing",
            f"{_said(context, adapter, 'layers_to_transform')}, and the model has {count} layers, counted from 0",
            f"leave {', '.join(map(str, beyond))} out",
        )
