"""What a plugin did while one scenario was planned, watched once for all checks that ask."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import pluggy

from loadkit.errors import LoadkitError, PlanError, PluginError
from loadkit.hooks.discovery import Announced, module_of
from loadkit.hooks.manager import PluginManager
from loadkit.testing.scenarios import Scenario, context_of, plan_of
from loadkit.testing.watching import Seen, watched

if TYPE_CHECKING:
    from collections.abc import Iterable

    from loadkit.testing.subjects import Subject

__all__ = ["Answer", "Compared", "Recorder", "Trace", "planned"]

DRAWS = ("loadkit_load_model", "loadkit_fit_vocabulary", "loadkit_attach_adapters", "loadkit_dequantize")
"""Hooks that make new weights, and may draw torch's random numbers for them."""

PLANNING = (
    "loadkit_options",
    "loadkit_profiles",
    "loadkit_architectures",
    "loadkit_optimizers",
    "loadkit_accelerators",
    "loadkit_recipe_dialects",
    "loadkit_shortcuts",
)
"""Hooks of planning beside those that are given the facts."""


class Answer(NamedTuple):
    """One answer of the plugin: to which hook, what."""

    hook: str
    value: Any


class Compared(NamedTuple):
    """A tensor that the plugin compared with the file and found to be the same: what it was given."""

    given: Mapping[str, Any]
    answer: str


@dataclass
class Trace:
    """What came of planning a scenario.

    Parameters:
        answers: what the plugin answered, in order.
        failure: how it failed; "" where it didn't.
        facts_changed: whether the facts aren't what they were.
        seen: what it did beside answering.
        outcome: the plan as text without who made it, or what stops it.
        unasked: what can't be asked for so, whatever the plan would be.
    """

    answers: list[Answer]
    failure: str
    facts_changed: bool
    seen: Seen
    outcome: str = field(repr=False)
    unasked: tuple[str, ...] = ()


class Recorder(PluginManager):
    """All installed plugins and the one that is checked: its answers are recorded, its hooks are watched.

    Parameters:
        subject: the plugin; one that was registered by hand takes the place of an installed one.
        reverse: register in the other order.
    """

    def __init__(self, subject: Subject, *, reverse: bool = False) -> None:
        self.answered: list[Answer] = []
        self.called: set[str] = set()
        self.compared: list[Compared] = []
        self.seen = Seen()
        self.at_registration = self.seen
        self._subject = subject
        self._reverse = reverse
        self._deep = 0
        super().__init__(environ={})
        if subject.entry is None:
            self.register(subject.plugin, subject.name)
        self.seen = Seen()

    def answers(self, hook: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Any]]:
        """As `PluginManager.answers`, with this plugin's recorded."""
        for plugin, answer in super().answers(hook, *args, **kwargs):
            if plugin == self._subject.name:
                self.answered.append(Answer(hook.__name__, answer))
            yield plugin, answer

    def _in_order(self, found: Iterable[Announced]) -> Iterable[Announced]:
        others = [each for each in found if self._subject.entry is not None or not self._same(each)]
        return reversed(others) if self._reverse else others

    def _same(self, found: Announced) -> bool:
        """Whether an installed plugin is the one that is registered by hand: it would only be in its way."""
        return found.name == self._subject.name or module_of(found.entry) == self._subject.module != ""

    def _call(
        self, impl: pluggy.HookImpl, kwargs: Mapping[str, object], passing: type[Exception] = PluginError
    ) -> Any:
        if impl.plugin_name != self._subject.name or self._deep:
            return super()._call(impl, kwargs, passing)
        hook = impl.function.__name__
        self.called.add(hook)
        planning = "context" in kwargs or hook in PLANNING
        self._deep += 1
        try:
            with watched(self.seen, hook, self._subject.home, planning=planning, draws=hook in DRAWS):
                answer = super()._call(impl, kwargs, passing)
        finally:
            self._deep -= 1
        if hook == "loadkit_compare_tensor" and answer is not None:
            self.compared.append(Compared(kwargs, answer))
        return answer


def planned(subject: Subject, scenario: Scenario, manager: Recorder) -> Trace:
    """Plan a scenario, watching the plugin. A `Hung` goes through."""
    manager.answered.clear()
    manager.seen = Seen()
    context = context_of(scenario, manager)
    before = msgspec.json.encode(context)
    failure = outcome = ""
    unasked: tuple[str, ...] = ()
    try:
        plan = plan_of(scenario, manager, context)
        outcome = msgspec.structs.replace(plan, plugins={}).to_json()
    except PlanError as error:
        own = (p.message for p in error.problems if p.code == "plugin-failed" and p.plugin == subject.name)
        failure = next(own, "")
        unasked = tuple(p.message for p in error.problems if p.stage == "request" and p.severity == "error")
        outcome = "\n".join(sorted(f"{p.code} {p.message}" for p in error.problems))
    except LoadkitError as error:
        outcome = f"{type(error).__name__}: {error}"
    return Trace(
        answers=list(manager.answered),
        failure=failure,
        facts_changed=msgspec.json.encode(context) != before,
        seen=manager.seen,
        outcome=outcome,
        unasked=unasked,
    )
