"""From a request to a plan: read the facts, ask the stages in order, check the whole, report every problem at once."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import msgspec

from loadkit.cache.entries import Entries
from loadkit.errors import PlanError, PluginError, Problem
from loadkit.facts.checkpoint.checkpoint import Checkpoint
from loadkit.facts.checkpoint.companions import read_beside
from loadkit.facts.checkpoint.fingerprint import identify
from loadkit.facts.checkpoint.read import read_checkpoint
from loadkit.facts.checkpoint.source import Access
from loadkit.facts.context import Context
from loadkit.facts.library.index import read_library
from loadkit.facts.machine.machine import Machine, read_machine
from loadkit.facts.machine.topology import Topology, read_topology
from loadkit.hooks import hookspecs as hooks
from loadkit.hooks.manager import PluginManager, default_manager
from loadkit.planning.memory.estimate import estimate
from loadkit.planning.memory.fit_check import check_memory
from loadkit.planning.plan_target import find_target
from loadkit.planning.quantization_checks import check_quantization
from loadkit.request.options import ask
from loadkit.request.profiles import find_profile
from loadkit.request.recipes import Recipe, read_recipe
from loadkit.schema.claims import Claim, Decision, StampedClaim, Strength, decide
from loadkit.schema.loading_aids import Shortcut
from loadkit.schema.plans import KWARGS, CheckpointSummary, Memory, Plan
from loadkit.schema.request import Asked, Progress, Request, Token
from loadkit.schema.stages import OWNED_KWARGS, STAGES, Stage, stage_named
from loadkit.schema.values import ModelClass, Preparation, Processing

__all__ = ["identity_of", "make_plan", "make_request", "plan_context", "this_machine"]

_problem = partial(Problem, "request", "loadkit")

T = TypeVar("T")


def make_plan(
    source: str | os.PathLike[str] | None = None,
    profile: str | None = None,
    *,
    recipe: str | os.PathLike[str] | Recipe | None = None,
    token: Token = None,
    machine: Machine | str | None = None,
    nodes: int | None = None,
    engine: str | None = None,
    topology: Topology | None = None,
    plugin_manager: PluginManager | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Plan:
    """Plan a load without loading anything. Public as `loadkit.plan`.

    Parameters:
        source: a folder, a Hub id, or an adapter repository (its base is found); None for the one that the recipe names.
        profile: a profile's name, or the path of a profile file; None for none.
        recipe: a training recipe of TRL, the alignment-handbook, open-r1, axolotl or LLaMA-Factory: its loading keys are
            preferences, stronger than the profile's, weaker than your options.
        token: the Hub token, as huggingface_hub takes it; it appears in no plan and no message.
        machine: facts to plan for, or a name: "8xH100-80GB", "cpu-64GB", "8x80GB-sm90"; this machine's by default.
        nodes: how many such machines; by default those of this launch.
        engine: what spreads the model over the processes: "ddp", "fsdp", "fsdp2", "zero1", "zero2", "zero3" or "tensor-parallel";
            by default what this launch says.
        topology: processes to plan for; by default those of this launch, or one for each accelerator of the machines named.
        plugin_manager: the plugins to ask; all installed ones by default.
        progress: called with a short sentence while something takes long.
        **options: what is wanted, by the options' names (`loadkit plan --help` lists them).

    Returns:
        The plan.

    Raises:
        PlanError: it can't be met; all problems are listed.
    """
    manager = plugin_manager or default_manager()
    request, problems = make_request(source, profile, options, manager, recipe)
    if not request.source:
        raise PlanError("", [*problems, *([] if problems else [_no_source(request)])])
    checkpoint, found = read_checkpoint(
        request.source,
        revision=request.value("revision", ""),
        # that of the adapter named by an option isn't the source's
        adapter_revision=""
        if isinstance(request.value("adapter"), str)
        else request.value("adapter_revision", ""),
        token=token,
        cache_dir=request.value("cache_dir"),
        local_files_only=request.value("local_files_only", False),
        allow_pickle=request.value("allow_pickle", False),
        progress=progress,
    )
    problems += found
    if not checkpoint.config and any(p.severity == "error" for p in problems):
        raise PlanError(request.source, problems)
    architectures = manager.architectures
    if checkpoint.model_type in architectures.conflicts:
        problems.append(
            _several("architecture", "model type", checkpoint.model_type, architectures.conflicts)
        )
    target = find_target(request, machine, nodes, engine, topology, here=this_machine(), launch=read_topology)
    problems += target.problems
    access = Access(token, request.value("cache_dir"), request.value("local_files_only", False), progress)
    beside, found_beside = read_beside(
        request, checkpoint, access, allow_pickle=request.value("allow_pickle", False)
    )
    problems += found_beside
    context = Context(
        request=request,
        checkpoint=checkpoint,
        beside=beside,
        machine=target.machine,
        topology=target.topology,
        library=read_library(checkpoint.config, progress=progress),
        architectures={name: item for name, (_, item) in architectures.found.items()},
    )
    plan = plan_context(context, manager, problems)
    if target.elsewhere:  # what is prepared on this machine shortens no load on another
        plan = msgspec.structs.replace(plan, elsewhere=target.elsewhere, shortcuts=())
    return plan


def make_request(
    source: str | os.PathLike[str] | None,
    profile: str | None,
    options: Mapping[str, Any],
    manager: PluginManager,
    recipe: str | os.PathLike[str] | Recipe | None = None,
) -> tuple[Request, list[Problem]]:
    """Check the options and merge them over the recipe's and the profile's, keeping who asked for what."""
    declared = manager.options
    yours, problems = ask(options, declared.found, declared.conflicts, by="you", strength=Strength.YOU)
    layers = [yours]
    read: Recipe | None = None
    if recipe is not None:
        read, found = (recipe, []) if isinstance(recipe, Recipe) else read_recipe(recipe)
        problems += found
    if read is not None:
        theirs, unfit = ask(
            read.options,
            declared.found,
            declared.conflicts,
            by=f"recipe {os.path.basename(read.path)!r}",
            strength=Strength.PROFILE,
        )
        layers.append(theirs)
        problems += [*unfit, *(_note(read, note) for note in read.notes)]
    if profile:
        wanted, found = _profile(profile, manager)
        layers.append(wanted)
        problems += found
    request = Request(
        source=os.fspath(source) if source is not None else read.source if read else "",
        profile=profile or "",
        options={name: asked for layer in reversed(layers) for name, asked in layer.items()},
        hidden=tuple(
            asked
            for i, layer in enumerate(layers)
            for name, asked in layer.items()
            if any(name in stronger for stronger in layers[:i])
        ),
        recipe=read.path if read else "",
        trainer_keys=tuple(sorted(read.trainer)) if read else (),
    )
    return request, problems


def _profile(name: str, manager: PluginManager) -> tuple[dict[str, Asked], list[Problem]]:
    """A profile's options, checked."""
    profiles, declared = manager.profiles, manager.options
    if name in profiles.conflicts:
        return {}, [_several("request", "profile", name, profiles.conflicts)]
    wanted, found = find_profile(name, profiles.found)
    theirs, unfit = ask(
        wanted, declared.found, declared.conflicts, by=f"profile {name!r}", strength=Strength.PROFILE
    )
    return theirs, [*found, *unfit]


def plan_context(context: Context, manager: PluginManager, problems: Iterable[Problem] = ()) -> Plan:
    """Make the plan for given facts.

    Parameters:
        context: the facts.
        manager: the plugins to ask.
        problems: those found so far.

    Raises:
        PlanError: the plan can't be met; all problems are listed.
    """
    made = _Decisions(context, manager, list(problems))
    made.run()
    errors = [p for p in made.problems if p.severity == "error"]
    if errors:
        raise PlanError(context.request.source, made.problems) from made.cause
    return msgspec.structs.replace(made.plan(), warnings=tuple(made.problems))


class _Decisions:
    """The decisions of one request while they are being made."""

    def __init__(self, context: Context, manager: PluginManager, problems: list[Problem]) -> None:
        self.context = context
        self.manager = manager
        self.problems = problems
        self.decisions: list[Decision] = []
        self.cause: PluginError | None = None
        self.memory: Memory | None = None
        self.shortcuts: tuple[Shortcut, ...] = ()

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
        """Decide one stage. A stage in conflict goes on with one of the claims, to find the other problems too."""
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
        if {s.name for s in STAGES if s.required} - {d.stage for d in plan.decisions}:
            return
        self.memory = self._guarded("memory", lambda: estimate(self.context, plan, self.manager))
        plan = msgspec.structs.replace(plan, memory=self.memory)
        self.problems += check_memory(self.context, plan)
        found = self._guarded(
            "check",
            lambda: self.manager.collect(hooks.loadkit_check_plan, Problem, context=self.context, plan=plan),
        )
        self.problems += found or ()
        self.shortcuts = tuple(self._guarded("shortcuts", lambda: self._shortcuts(plan)) or ())

    def _shortcuts(self, plan: Plan) -> list[Shortcut]:
        return self.manager.collect(
            hooks.loadkit_shortcuts,
            Shortcut,
            plan=plan,
            identity=identity_of(plan),
            machine=self.context.machine,
            entries=Entries(),
        )

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
            shortcuts=self.shortcuts,
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


@functools.lru_cache(maxsize=1)
def this_machine() -> Machine:
    """The facts of this machine, read once a process."""
    return read_machine()


def identity_of(plan: Plan) -> str:
    """What tells the weights and configs of a plan's checkpoint from any others, as they are now; "" where they can't be told."""
    about = plan.checkpoint
    return identify(about.location, about.commit, about.weight_files)


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


def _note(recipe: Recipe, note: str) -> Problem:
    return _problem(
        "recipe-note",
        f"recipe {os.path.basename(recipe.path)!r}: {note}",
        "nothing need be done; an option of your own decides otherwise",
        severity="note",
    )


def _no_source(request: Request) -> Problem:
    asked = (
        f"recipe {request.recipe!r} names no model"
        if request.recipe
        else "neither a model nor a recipe was given"
    )
    return _problem(
        "no-source", asked, "give a folder or a Hub id as the source, or model_name_or_path in the recipe"
    )


def _several(stage: str, what: str, name: str, conflicts: Mapping[str, tuple[str, ...]]) -> Problem:
    plugins = conflicts[name]
    return Problem(
        stage,
        "loadkit",
        "conflict",
        f"{what} {name!r} is provided by several plugins: {', '.join(plugins)}",
        f"leave all but one out, for example LOADKIT_DISABLE={','.join(plugins[1:])}",
    )
