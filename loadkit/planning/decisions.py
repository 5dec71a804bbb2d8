"""The decisions of one request: every stage is asked in order, then every plugin looks at the whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from loadkit.cache.entries import Entries
from loadkit.errors import PluginError, Problem
from loadkit.facts.checkpoint.checkpoint import Checkpoint
from loadkit.facts.context import Context
from loadkit.facts.load_facts import LoadFacts
from loadkit.hooks import hookspecs as hooks
from loadkit.hooks.contained import shown
from loadkit.hooks.manager import PluginManager
from loadkit.planning.ledger import Reads
from loadkit.planning.memory.estimate import estimate
from loadkit.planning.memory.fit_check import check_memory
from loadkit.planning.owned_kwargs import owned, owned_within
from loadkit.planning.quantization_checks import check_quantization
from loadkit.planning.unusable_packages import check_packages
from loadkit.schema.claims import Claim, Decision, StampedClaim, decide
from loadkit.schema.finishes import Finish
from loadkit.schema.loading_aids import Shortcut
from loadkit.schema.memory import Memory
from loadkit.schema.plans import KWARGS, CheckpointSummary, Plan
from loadkit.schema.processing import Processing
from loadkit.schema.stages import OWNED_KWARGS, STAGES, Stage
from loadkit.schema.values import Preparation

__all__ = ["Decisions"]

T = TypeVar("T")

UNDECIDED: Mapping[str, Any] = {
    "dtype": "float32",
    "preparation": Preparation(),
    "processing": Processing(kind="none"),
}
"""What later stages get for a stage that must be decided and wasn't, to find further problems."""


class Decisions:
    """The decisions of one request while they are being made."""

    def __init__(
        self, context: Context, manager: PluginManager, problems: list[Problem], reads: Reads
    ) -> None:
        self.context = context
        self.reads = reads
        self.manager = manager
        self.problems = problems
        self.decisions: list[Decision] = []
        self.cause: PluginError | None = None
        self.memory: Memory | None = None
        self.finishes: tuple[Finish, ...] = ()

    def run(self) -> None:
        """Ask every stage, each with the values decided before it."""
        about: dict[str, Any] = {"context": self.context}
        for stage in STAGES:
            value = self.conclude(stage, about)
            if stage.name == "architecture" and value is None:
                return  # every other stage depends on the class
            if stage.name == "quantization":
                with self.reads.during(stage.name):
                    self.problems += check_quantization(self.context, value)
            about[stage.name] = value or UNDECIDED.get(stage.name)
        self.further_kwargs()
        self.check()

    def conclude(self, stage: Stage, about: Mapping[str, Any]) -> Any:
        """Decide one stage. A stage in conflict goes on with one claim, to find further problems."""
        hook: Callable[..., Any] = getattr(hooks, f"loadkit_choose_{stage.name}")
        polled = self._guarded(stage.name, lambda: self.manager.poll(hook, **about))
        if polled is None:
            return None
        claims = self._guarded(stage.name, lambda: [_fitting(stage, c) for c in polled.claims])
        if claims is None:
            return None
        decided = decide(stage.name, claims, option=stage.option, demands=self._demands(stage, claims))
        if isinstance(decided, Problem):
            self.problems.append(decided)
            decided = decide(stage.name, [max(claims, key=lambda c: (c.claim.strength.rank, c.plugin))])
        if decided is None or isinstance(decided, Problem):
            if stage.required:
                self.problems += polled.explanations or [self._undecided(stage)]
            return None
        self.decisions.append(decided)
        return decided.value

    def _demands(self, stage: Stage, claims: Iterable[StampedClaim]) -> list[str]:
        """What the caller gave for a stage, by which the plugins that claim may differ."""
        declared, plugins = self.manager.options.found, {c.plugin for c in claims}
        return [
            f"{name}={asked.value!r}"
            for name, asked in sorted(self.context.request.options.items())
            if asked.demanded
            and declared[name][1].stage == stage.name
            and (name == stage.option or declared[name][0] in plugins)
        ]

    def further_kwargs(self) -> None:
        """Decide every further keyword argument on its own."""
        claims: dict[str, list[StampedClaim]] = {}
        for plugin, key, given in self._guarded("kwargs", self._contributed) or ():
            if key in OWNED_KWARGS:
                self.problems.append(owned(key, plugin))
            else:
                self.problems += (
                    p for claim in given for p in owned_within(key, claim.value, plugin, self.context)
                )
                claims.setdefault(key, []).extend(StampedClaim(plugin, claim) for claim in given)
        for key in sorted(claims):
            decided = decide(KWARGS + key, claims[key], option=f"model_kwargs={{{key!r}: …}}")
            if isinstance(decided, Problem):
                self.problems.append(decided)
            elif decided is not None:
                self.decisions.append(decided)

    def _contributed(self) -> list[tuple[str, str, Sequence[Claim[Any]]]]:
        """Every contribution as (plugin, keyword, claims)."""
        found: list[tuple[str, str, Sequence[Claim[Any]]]] = []
        hook = hooks.loadkit_contribute_kwargs
        for plugin, answer in self.manager.answers(hook, context=self.context, plan=self.plan()):
            items: Iterable[tuple[str, Any]] | None = answer.items() if isinstance(answer, Mapping) else None
            given = [(key, item if isinstance(item, list | tuple) else [item]) for key, item in items or ()]
            claims = [claim for _, several in given for claim in several]
            if items is None or not all(isinstance(claim, Claim) for claim in claims):
                fault = (
                    f"it answered {shown(answer)}; this hook returns a mapping of keyword to Claim, or None"
                )
                raise PluginError(plugin, fault, hook=hook.__name__)
            found += [(plugin, key, several) for key, several in given]
        return found

    def check(self) -> None:
        """Let every plugin look at the whole plan, if it is whole."""
        plan = self.plan()
        if not self.whole:
            return
        self.memory = self._guarded("memory", lambda: estimate(self.context, plan, self.manager))
        plan = msgspec.structs.replace(plan, memory=self.memory)
        self.finishes = tuple(self._guarded("finish", lambda: self._finishes(plan)) or ())
        plan = msgspec.structs.replace(plan, finishes=self.finishes)
        with self.reads.during("memory"):
            self.problems += check_memory(self.context, plan, self.manager.optimizers)
        machine = self.context.machine
        self.problems += check_packages(plan, machine.packages, machine.unusable)
        hook, facts = hooks.loadkit_check_plan, self.context
        found = self._guarded("check", lambda: self.manager.collect(hook, Problem, context=facts, plan=plan))
        self.problems += found or ()

    def _finishes(self, plan: Plan) -> list[Finish]:
        """What each plugin will do to the finished model."""
        hook, found = hooks.loadkit_announce_finish, []
        for plugin, given in self.manager.answers(hook, context=self.context, plan=plan):
            if not isinstance(given, Finish) or not given.what.strip() or given.tolerance < 0:
                fault = f"it answered {shown(given)}; this hook returns a Finish that says what, or None"
                raise PluginError(plugin, fault, hook=hook.__name__)
            found.append(msgspec.structs.replace(given, plugin=plugin))
        return found

    def shortcuts(self, plan: Plan, facts: LoadFacts) -> tuple[Shortcut, ...]:
        """What will make a load of the whole plan faster here."""
        about = {"identity": facts.fingerprint, "machine": facts.machine, "entries": Entries()}
        hook: Callable[..., Any] = hooks.loadkit_shortcuts
        found = self._guarded("shortcuts", lambda: self.manager.collect(hook, Shortcut, plan=plan, **about))
        return tuple(found or ())

    @property
    def whole(self) -> bool:
        """Whether every stage that must be decided is."""
        return {s.name for s in STAGES if s.required} <= {d.stage for d in self.decisions}

    def plan(self) -> Plan:
        """The plan as far as it is decided."""
        return Plan(
            request=self.context.request,
            checkpoint=_summary(self.context.checkpoint),
            decisions=tuple(self.decisions),
            machine=self.context.machine.describe(),
            topology=self.context.topology.describe(),
            plugins=self.manager.versions(),
            memory=self.memory,
            finishes=self.finishes,
        )

    def _guarded(self, stage: str, asking: Callable[[], T]) -> T | None:
        """Turn a plugin's failure into a problem that names it, so that the others are still asked."""
        try:
            with self.reads.during(stage):
                return asking()
        except PluginError as error:
            self.cause = error
            remedy = f"tell the plugin's author, or go on without it: LOADKIT_DISABLE={error.plugin}"
            self.problems.append(Problem(stage, error.plugin, "plugin-failed", str(error), remedy))
            return None

    def _undecided(self, stage: Stage) -> Problem:
        blocked = [f"{p.name} ({p.state}: {p.reason})" for p in self.manager.plugins if p.state != "active"]
        return Problem(
            stage.name,
            "loadkit",
            "undecided",
            "no plugin decided it" + (f"; not taking part: {', '.join(blocked)}" if blocked else ""),
            "`loadkit plugins` shows which plugins are there; loadkit's own come with the distribution",
        )


def _fitting(stage: Stage, stamped: StampedClaim) -> StampedClaim:
    """The claim with its value in exactly the stage's type, so that a plan equals its own round trip."""
    plugin, claim = stamped
    try:
        value = msgspec.convert(msgspec.to_builtins(claim.value), stage.type)
    except (msgspec.ValidationError, TypeError) as error:
        fault = f"its claim has a value of the wrong type: {shown(claim.value)} ({error})"
        raise PluginError(plugin, fault, hook=f"loadkit_choose_{stage.name}") from error
    return StampedClaim(plugin, msgspec.structs.replace(claim, value=value))


def _summary(checkpoint: Checkpoint) -> CheckpointSummary:
    same = {name: getattr(checkpoint, name) for name in CheckpointSummary.__struct_fields__}
    return CheckpointSummary(**{**same, "tensors": len(checkpoint.tensors)})
