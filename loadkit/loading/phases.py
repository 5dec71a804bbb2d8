"""The phases between loading and the audit, in order: each done by one plugin, measured by the core."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from loadkit.errors import LoadError
from loadkit.hooks import hookspecs as hooks
from loadkit.hooks.manager import PluginManager
from loadkit.loading.out_of_memory import is_out_of_memory, memory_remedy
from loadkit.loading.parameter_changes import compare, take
from loadkit.schema.adapters import Adapters
from loadkit.schema.plans import Plan
from loadkit.schema.processing import Vocabulary
from loadkit.schema.reports import Change
from loadkit.schema.request import Progress

__all__ = ["PHASES", "Phase", "run_phases"]


class Phase(NamedTuple):
    """One phase: its name in the report, its hook, whether a plan has it, and what to tell whoever waits."""

    name: str
    hook: Callable[..., Any]
    needed: Callable[[Plan], bool]
    about: str


PHASES: tuple[Phase, ...] = (
    Phase(
        "vocabulary",
        hooks.loadkit_fit_vocabulary,
        lambda plan: plan.processing.kind != "none",
        "fitting the embeddings to the tokenizer",
    ),
    Phase(
        "dequantization",
        hooks.loadkit_dequantize,
        lambda plan: plan.adapters is not None and plan.adapters.dequantize,
        "turning the quantized base back into floating point",
    ),
    Phase(
        "k-bit preparation",
        hooks.loadkit_prepare_quantized,
        lambda plan: plan.preparation.kbit,
        "preparing the quantized base for training",
    ),
    Phase(
        "freezing",
        hooks.loadkit_freeze,
        lambda plan: plan.preparation.freezes,
        "freezing what doesn't train",
    ),
    Phase(
        "gradient checkpointing",
        hooks.loadkit_checkpoint_activations,
        lambda plan: plan.preparation.gradient_checkpointing,
        "turning gradient checkpointing on",
    ),
    Phase(
        "input gradients",
        hooks.loadkit_enable_input_gradients,
        lambda plan: plan.preparation.input_gradients,
        "letting gradients flow from the embeddings",
    ),
    Phase(
        "adapter",
        hooks.loadkit_attach_adapters,
        lambda plan: plan.adapters is not None,
        "attaching the adapter",
    ),
    Phase(
        "merge",
        hooks.loadkit_merge_adapters,
        lambda plan: plan.adapters is not None and plan.adapters.merge,
        "merging the adapter into the base",
    ),
)
"""Resizing comes before an adapter wraps the embeddings; freezing before gradients are let through the frozen
base; checkpointing before input gradients, which it needs; the adapter last: nothing freezes it again."""


def run_phases(
    plan: Plan,
    model: Any,
    vocabulary: Vocabulary,
    adapters: Adapters | None,
    manager: PluginManager,
    clock: Callable[[str], AbstractContextManager[Any]],
    say: Progress,
) -> tuple[Any, tuple[Change, ...]]:
    """Carry out the plan's phases; the model in the planned mode, and what each did to its parameters."""
    changes: list[Change] = []
    for phase in (phase for phase in PHASES if phase.needed(plan)):
        say(phase.about)
        before = take(model)
        given = {"plan": plan, "model": model, "vocabulary": vocabulary, "adapters": adapters}
        with clock(phase.name):
            try:
                done = manager.first(phase.hook, **given)
            except Exception as error:
                cause = error.__cause__ or error
                if not is_out_of_memory(cause):
                    raise
                raise LoadError(
                    f"memory ran out while {phase.about} for {plan.checkpoint.source!r}: {type(cause).__name__}: {cause}\n"
                    f"    fix: {memory_remedy(plan)}"
                ) from cause
        if done is None:
            name = phase.hook.__name__
            raise LoadError(
                f"no plugin carried out {phase.name}: {name} has no taker; `loadkit plugins --hook {name}` shows who implements it"
            )
        model = done
        changes += compare(phase.name, before, take(model))
    return model.train(plan.preparation.training), tuple(changes)
