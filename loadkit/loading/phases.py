"""The phases between loading and the audit, in order: each done by one plugin, measured by the core."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from loadkit.errors import LoadError
from loadkit.hooks import hookspecs as hooks
from loadkit.hooks.manager import PluginManager
from loadkit.loading.parameter_changes import compare, take
from loadkit.schema.plans import Plan
from loadkit.schema.reports import Change
from loadkit.schema.request import Progress
from loadkit.schema.values import Adapters, Vocabulary

__all__ = ["PHASES", "Given", "Phase", "run_phases"]


class Phase(NamedTuple):
    """One phase.

    Parameters:
        name: its name in the report.
        hook: who carries it out.
        needed: whether a plan has it.
        arguments: what its hook gets beside plan and model.
        about: what happens, for whoever waits.
    """

    name: str
    hook: Callable[..., Any]
    needed: Callable[[Plan], bool]
    arguments: Callable[[Given], dict[str, Any]]
    about: str


class Given(NamedTuple):
    """What phases need beside plan and model: the tokenizer's demands, and adapters with local files."""

    vocabulary: Vocabulary
    adapters: Adapters | None


def _nothing(given: Given) -> dict[str, Any]:
    return {}


PHASES: tuple[Phase, ...] = (
    Phase(
        "vocabulary",
        hooks.loadkit_fit_vocabulary,
        lambda plan: plan.processing.kind != "none",
        lambda given: {"vocabulary": given.vocabulary},
        "fitting the embeddings to the tokenizer",
    ),
    Phase(
        "dequantization",
        hooks.loadkit_dequantize,
        lambda plan: plan.adapters is not None and plan.adapters.dequantize,
        _nothing,
        "turning the quantized base back into floating point",
    ),
    Phase(
        "k-bit preparation",
        hooks.loadkit_prepare_quantized,
        lambda plan: plan.preparation.kbit,
        _nothing,
        "preparing the quantized base for training",
    ),
    Phase(
        "gradient checkpointing",
        hooks.loadkit_checkpoint_activations,
        lambda plan: plan.preparation.gradient_checkpointing,
        _nothing,
        "turning gradient checkpointing on",
    ),
    Phase(
        "input gradients",
        hooks.loadkit_enable_input_gradients,
        lambda plan: plan.preparation.input_gradients,
        _nothing,
        "letting gradients flow from the embeddings",
    ),
    Phase(
        "adapter",
        hooks.loadkit_attach_adapters,
        lambda plan: plan.adapters is not None,
        lambda given: {"adapters": given.adapters, "vocabulary": given.vocabulary},
        "attaching the adapter",
    ),
    Phase(
        "merge",
        hooks.loadkit_merge_adapters,
        lambda plan: plan.adapters is not None and plan.adapters.merge,
        lambda given: {"adapters": given.adapters},
        "merging the adapter into the base",
    ),
)
"""Resizing comes before an adapter wraps the embeddings; freezing before gradients are let through the frozen
base; checkpointing before input gradients, which it needs; the adapter last, so that nothing freezes it
again."""


def run_phases(
    plan: Plan,
    model: Any,
    given: Given,
    manager: PluginManager,
    clock: Callable[[str], AbstractContextManager[Any]],
    say: Progress,
) -> tuple[Any, tuple[Change, ...]]:
    """Carry out the phases that the plan has, and leave the model in the planned mode.

    Parameters:
        model: the loaded model.
        given: what the phases need beside plan and model.
        clock: times each phase by its name.
        say: called with what is going on.

    Returns:
        The final model, and what each phase did to its parameters.

    Raises:
        LoadError: no plugin carries a phase out.
    """
    changes: list[Change] = []
    for phase in _needed(plan):
        say(phase.about)
        before = take(model)
        with clock(phase.name):
            done = manager.first(phase.hook, plan=plan, model=model, **phase.arguments(given))
        if done is None:
            name = phase.hook.__name__
            raise LoadError(
                f"no plugin carried out {phase.name}: {name} has no taker; `loadkit plugins --hook {name}` shows who implements it"
            )
        model = done
        changes += compare(phase.name, before, take(model))
    return model.train(plan.preparation.training), tuple(changes)


def _needed(plan: Plan) -> Iterator[Phase]:
    phases: Sequence[Phase] = PHASES
    return (phase for phase in phases if phase.needed(plan))
