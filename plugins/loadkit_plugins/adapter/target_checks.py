"""Whether an adapter's type can adapt what it targets in this model: targets of its own, kinds of layers,
lists of them, and layers that it repeats."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial

from loadkit import Adapter, Context, Plan, Problem
from loadkit.plugins import some_of
from loadkit_plugins.adapter.targeted import effective_targets, targeted_layers

__all__ = ["check_targets_of_type"]

_problem = partial(Problem, "adapter", "adapter")

Said = Callable[[str], str]

REPLICABLE = re.compile(r"(?:model\.)*(?:bert\.)?(?:layers|encoder\.layer|h)\.(\d+)\.")
"""Where PEFT 0.21 looks for layers to repeat (`replicate_layers`)."""


def check_targets_of_type(context: Context, plan: Plan, adapter: Adapter, said: Said) -> Iterator[Problem]:
    """Every problem of a new adapter's targets with its type.

    Parameters:
        said: a field to the words for who gave it, and what.
    """
    yield from _no_targets(context, plan, adapter, said)
    yield from _turned(context, plan, adapter)
    yield from _containers(context, plan, adapter, said)
    yield from _replicated(context, plan, adapter, said)


def _no_targets(context: Context, plan: Plan, adapter: Adapter, said: Said) -> Iterator[Problem]:
    """No targets where PEFT has none of its own, an empty list, and targets that are all left out again."""
    options = adapter.options
    if effective_targets(context, plan, adapter) == [] and options.get("target_modules") is None:
        if not options.get("target_parameters"):
            yield _problem(
                "no-default-targets",
                f"an adapter of {adapter.peft_type} was asked for without target_modules, and PEFT has none of its own for "
                f"{plan.model_class.model_class}",
                'name them: target_modules="all-linear", or a list such as ["q_proj", "v_proj"]',
            )
        return
    targets, left_out = options.get("target_modules"), options.get("exclude_modules")
    if targets in ("", []) and not options.get("target_parameters"):
        yield _problem(
            "target-matches-nothing",
            f"{said('target_modules')}, which names no module",
            "name some, or leave it out",
        )
    if isinstance(targets, list) and isinstance(left_out, list) and targets and set(targets) <= set(left_out):
        yield _problem(
            "target-matches-nothing",
            f"{said('exclude_modules')}, which leaves out every one of target_modules={targets!r}",
            "take one of them out of exclude_modules",
        )


def _turned(context: Context, plan: Plan, adapter: Adapter) -> Iterator[Problem]:
    """GPT-2's layers, which few types can adapt."""
    if context.peft_adapts(adapter.peft_type, "Conv1D"):
        return
    turned = {weight.module for weight in context.weights(plan.model_class) if weight.turned}
    targeted = (
        path for path, _, _ in targeted_layers(context, plan, effective_targets(context, plan, adapter))
    )
    if wrong := [path for path in targeted if path in turned]:
        yield _problem(
            "target-cant-be-adapted",
            f"an adapter of {adapter.peft_type} was asked for, and {some_of(wrong)} is a Conv1D, which PEFT has no such layer for",
            "use LoRA or IA3, which can adapt it, or leave it out of target_modules",
        )


def _containers(context: Context, plan: Plan, adapter: Adapter, said: Said) -> Iterator[Problem]:
    """Lists of layers that are to train whole, where PEFT copies single modules; and modules to train whole
    that leave no target."""
    given = adapter.options.get("modules_to_save")
    targeted = [
        path for path, _, _ in targeted_layers(context, plan, effective_targets(context, plan, adapter))
    ]
    within = re.compile("|".join(rf"(?:.*\.)?{re.escape(str(name))}\..*" for name in given or ()))
    if given and targeted and all(within.fullmatch(path) for path in targeted):
        yield _problem(
            "target-matches-nothing",
            f"{said('modules_to_save')}, in which every target lies, such as {targeted[0]}: there would be nothing to adapt",
            "name modules beside the targets, or train the model whole: profile full",
        )
        return
    for name in given if isinstance(given, list) else ():
        numbered = re.compile(rf"(?:.*\.)?{re.escape(str(name))}\.\d+\.")
        modules = [w.module for w in context.weights(plan.model_class) if w.kind != "experts"]
        if held := [path for path in modules if numbered.match(f"{path}.")]:
            yield _problem(
                "target-cant-be-adapted",
                f"{said('modules_to_save')}, and {name!r} is a list of layers ({held[0]} is in one), which PEFT can't train whole",
                f"name single modules, such as {held[0].rpartition('.')[2]!r}; without an adapter, train_only=['.*{name}'] trains them",
            )


def _replicated(context: Context, plan: Plan, adapter: Adapter, said: Said) -> Iterator[Problem]:
    """Layers that are to be repeated: PEFT finds them in models that are built as Llama's are, or BERT's."""
    given = adapter.options.get("layer_replication")
    modules = [weight.module for weight in context.weights(plan.model_class)]
    if not given or not modules:
        return
    numbers = [int(match[1]) for module in modules if (match := REPLICABLE.match(module))]
    if not numbers:
        yield _problem(
            "peft-refuses",
            f"{said('layer_replication')}, and PEFT doesn't find the layers of {plan.model_class.model_class}: it looks for "
            "model.layers, bert.encoder.layer or h",
            "leave it out",
        )
        return
    count = max(numbers) + 1
    pairs = [pair for pair in given if isinstance(pair, list | tuple) and len(pair) == 2]
    if wrong := [list(pair) for pair in pairs if not 0 <= pair[0] < pair[1] <= count]:
        yield _problem(
            "bad-field",
            f"{said('layer_replication')}, and {some_of(map(str, wrong))} is no range of the model's {count} layers",
            f"give [first, end] with 0 ≤ first < end ≤ {count}",
        )
