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
from loadkit.hooks.manager import PluginManager
from loadkit.planning.memory.estimate import estimate
from loadkit.planning.memory.fit_check import check_memory
from loadkit.planning.quantization_checks import check_quantization
from loadkit.schema.claims import Claim, Decision, StampedClaim, decide
from loadkit.schema.loading_aids import Shortcut
from loadkit.schema.plans import KWARGS, CheckpointSummary, Memory, Plan
from loadkit.schema.stages import OWNED_KWARGS, STAGES, Stage, stage_named
from loadkit.schema.values import ModelClass, Preparation, Processing

__all__ = ["Decisions"]

T = TypeVar("T")


class Decisions:
    """The decisions of one request while they are being made."""

    def __init__(self, context: Context, manager: PluginManager, problems: list[Problem]) -> None:
        self.context = context
        self.manager = manager
        self.problems = problems
        self.decisions: list[Decision] = []
        self.cause: PluginError | None = None
        self.memory: Memory | None = None

    def run(self) -> None:
        """Ask every stage, each with the values decided before it."""
        about: dict[str, Any] = {"context": self.context}
        model: ModelClass | None = self.conclude("architecture", hooks.loadkit_choose_architecture, **about)
        if model is None:
            return  # every other stage depends on the class
        about["architecture"] = model
        dtype = self.conclude("dtype", hooks.loadkit_choose_dtype, **about) or "float32"
        self.conclude("attention", hooks.loadkit_choose_attention, **about, dtype=dtype)
        quantization = self.conclude("quantization", hooks.loadkit_choose_quantization, **about, dtype=dtype)
        self.problems += check_quantization(self.context, quantization)
        about["quantization"] = quantization
        self.conclude("device_map", hooks.loadkit_choose_device_map, **about)
        preparation = self.conclude("preparation", hooks.loadkit_choose_preparation, **about) or Preparation()
        about["preparation"] = preparation
        self.conclude("use_cache", hooks.loadkit_choose_use_cache, **about)
        processing = self.conclude("processing", hooks.loadkit_choose_processing, **about)
        tokens = self.conclude(
            "tokens",
            hooks.loadkit_choose_tokens,
            **about,
            processing=processing or Processing(kind="none"),
        )
        self.conclude("adapter", hooks.loadkit_choose_adapter, **about, dtype=dtype, tokens=tokens)
        self.further_kwargs()
        self.check()

    def conclude(self, name: str, hook: Callable[..., Any], **given: Any) -> Any:
        """Decide one stage. A stage in conflict goes on with one claim, to find further problems."""
        stage = stage_named(name)
        assert stage is not None
        polled = self._guarded(name, lambda: self.manager.poll(hook, **given))
        if polled is None:
            return None
        claims = self._guarded(name, lambda: [self._fitting(stage, c) for c in polled.claims])
        if claims is None:
            return None
        decided = decide(name, claims, option=stage.option, demands=self._demands(stage, claims))
        if isinstance(decided, Problem):
            self.problems.append(decided)
            decided = decide(name, [max(claims, key=lambda c: (c.claim.strength.rank, c.plugin))])
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
                self.problems.append(_owned(key, plugin))
            else:
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
        for plugin, contributed in self.manager.answers(hook, context=self.context, plan=self.plan()):
            items = contributed.items() if isinstance(contributed, Mapping) else None
            for key, given in items or ():
                claims: list[Any] = list(given) if isinstance(given, list | tuple) else [given]
                if not all(isinstance(claim, Claim) for claim in claims):
                    items = None
                    break
                found.append((plugin, key, claims))
            if items is None:
                fault = (
                    f"it answered {contributed!r}; this hook returns a mapping of keyword to Claim, or None"
                )
                raise PluginError(plugin, fault, hook=hook.__name__)
        return found

    def check(self) -> None:
        """Let every plugin look at the whole plan, if it is whole."""
        plan = self.plan()
        if not self.whole:
            return
        self.memory = self._guarded("memory", lambda: estimate(self.context, plan, self.manager))
        plan = msgspec.structs.replace(plan, memory=self.memory)
        self.problems += check_memory(self.context, plan)
        found = self._guarded(
            "check",
            lambda: self.manager.collect(hooks.loadkit_check_plan, Problem, context=self.context, plan=plan),
        )
        self.problems += found or ()

    def shortcuts(self, plan: Plan, facts: LoadFacts) -> tuple[Shortcut, ...]:
        """What will make a load of the whole plan faster here."""
        asking = lambda: self.manager.collect(  # noqa: E731
            hooks.loadkit_shortcuts,
            Shortcut,
            plan=plan,
            identity=facts.fingerprint,
            machine=facts.machine,
            entries=Entries(),
        )
        return tuple(self._guarded("shortcuts", asking) or ())

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
        )

    def _guarded(self, stage: str, asking: Callable[[], T]) -> T | None:
        """Turn a plugin's failure into a problem that names it, so that the others are still asked."""
        try:
            return asking()
        except PluginError as error:
            self.cause = error
            self.problems.append(
                Problem(
                    stage,
                    error.plugin,
                    "plugin-failed",
                    str(error),
                    f"tell the plugin's author, or go on without it: LOADKIT_DISABLE={error.plugin}",
                )
            )
            return None

    def _fitting(self, stage: Stage, stamped: StampedClaim) -> StampedClaim:
        """The claim with its value in exactly the stage's type, so that a plan equals its own round trip."""
        try:
            value = msgspec.convert(msgspec.to_builtins(stamped.claim.value), stage.type)
        except (msgspec.ValidationError, TypeError) as error:
            raise PluginError(
                stamped.plugin,
                f"its claim has a value of the wrong type: {stamped.claim.value!r} ({error})",
                hook=f"loadkit_choose_{stage.name}",
            ) from error
        return StampedClaim(stamped.plugin, msgspec.structs.replace(stamped.claim, value=value))

    def _undecided(self, stage: Stage) -> Problem:
        blocked = [f"{p.name} ({p.state}: {p.reason})" for p in self.manager.plugins if p.state != "active"]
        return Problem(
            stage.name,
            "loadkit",
            "undecided",
            "no plugin decided it" + (f"; not taking part: {', '.join(blocked)}" if blocked else ""),
            "`loadkit plugins` shows which plugins are there; loadkit's own come with the distribution",
        )


def _summary(checkpoint: Checkpoint) -> CheckpointSummary:
    return CheckpointSummary(
        source=checkpoint.source,
        location=checkpoint.location,
        kind=checkpoint.kind,
        revision=checkpoint.revision,
        commit=checkpoint.commit,
        model_type=checkpoint.model_type,
        weight_bytes=checkpoint.weight_bytes,
        weight_format=checkpoint.weight_format,
        tensors=len(checkpoint.tensors),
        weight_files=checkpoint.weight_files,
    )


def _owned(key: str, plugin: str) -> Problem:
    owner = OWNED_KWARGS[key]
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
