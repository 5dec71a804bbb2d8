"""From a request to a plan: read the facts, ask the stages in order, report every problem at once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from loadkit.errors import LoadkitError, PlanError, Problem
from loadkit.facts.checkpoint.companions import read_beside
from loadkit.facts.checkpoint.read import read_checkpoint
from loadkit.facts.checkpoint.references import without_secrets
from loadkit.facts.checkpoint.source import Access
from loadkit.facts.context import Context
from loadkit.facts.library.index import read_library
from loadkit.facts.library.registrations import read_registrations
from loadkit.facts.load_facts import LoadFacts, listings_of, read_load_facts
from loadkit.facts.machine.machine import Machine, this_machine
from loadkit.facts.machine.topology import Topology, read_topology
from loadkit.facts.machine.working_folder import refuse_lost_folder
from loadkit.hooks.manager import PluginManager, default_manager
from loadkit.hooks.sources import stores_of
from loadkit.planning.build_request import (
    NOT_UTF8,
    fit_to_checkpoint,
    make_request,
    no_source,
    read_once,
    several_plugins,
)
from loadkit.planning.decisions import Decisions
from loadkit.planning.environment_asked import environment_asked
from loadkit.planning.ledger import Reads, ledger_of, unread
from loadkit.planning.plan_target import Target, find_target
from loadkit.planning.plugin_problems import broken_plugins, stated_facts
from loadkit.request.environment import misspelt
from loadkit.request.options import CORE_OPTIONS
from loadkit.request.recipes import Recipe
from loadkit.request.trainer_fields import unknown_trainer_fields
from loadkit.schema.loading_aids import Shortcut
from loadkit.schema.plans import Plan
from loadkit.schema.request import Progress, Request, Token

__all__ = ["Planned", "make_plan", "plan_context", "plan_load"]


class Planned(NamedTuple):
    """A plan, and the facts that a load of it needs here; None where the plan is for elsewhere."""

    plan: Plan
    facts: LoadFacts | None


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
        source: a folder, a Hub id, an address that a plugin opens ("s3://bucket/model"), or any of an adapter
            (its base is found); None for the one that the recipe names.
        profile: a profile's name, or the path of a profile file; None for none.
        recipe: a training recipe of TRL, the alignment-handbook, open-r1, axolotl or LLaMA-Factory: its
            loading keys are preferences, stronger than the profile's, weaker than your options.
        token: the Hub token, as huggingface_hub takes it; it appears in no plan and no message.
        machine: facts to plan for, or a name: "8xH100-80GB", "cpu-64GB", "8x80GB-sm90"; this machine's by
            default.
        nodes: how many such machines; by default those of this launch.
        engine: what spreads the model over the processes: "ddp", "fsdp", "fsdp2", "zero1", "zero2", "zero3"
            or "tensor-parallel"; by default what this launch says.
        topology: processes to plan for; by default those of this launch, or one for each accelerator of the
            machines named.
        plugin_manager: the plugins to ask; all installed ones by default.
        progress: called with a short sentence while something takes long.
        **options: what is wanted, by the options' names (`loadkit plan --help` lists them).

    Returns:
        The plan.

    Raises:
        PlanError: it can't be met; all problems are listed.

    Example:
        plan = loadkit.plan("./my-mistral", "qlora", attn_implementation="sdpa")
        print(plan)
        print(plan.why("dtype"))
        loaded = loadkit.load(plan)
    """
    return plan_load(
        source, profile, recipe=recipe, token=token, machine=machine, nodes=nodes, engine=engine, topology=topology,
        plugin_manager=plugin_manager, progress=progress, **options,
    ).plan  # fmt: skip


def plan_load(
    source: str | os.PathLike[str] | Plan | None,
    profile: str | None = None,
    *,
    recipe: str | os.PathLike[str] | Recipe | None = None,
    token: Token = None,
    machine: Machine | str | None = None,
    nodes: int | None = None,
    engine: str | None = None,
    topology: Topology | None = None,
    launch: Topology | None = None,
    plugin_manager: PluginManager | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Planned:
    """Plan a load as `make_plan` does, or take a plan as it is, with the facts that the load needs.

    Raises:
        PlanError: the request can't be met; all problems are listed.
        LoadkitError: a plan was given, and something that would change it.
    """
    refuse_lost_folder()
    if isinstance(source, Plan):
        given = {name: value for name, value in {"profile": profile, "recipe": recipe}.items() if value}
        _refuse_changes(given | options)
        stores = stores_of(plugin_manager or default_manager())
        return Planned(source, None if source.elsewhere else read_load_facts(source, launch, stores=stores))
    manager = plugin_manager or default_manager()
    read, unreadable = read_once(recipe, manager)
    request, problems = make_request(source, profile, options, manager, read)
    problems = [*unreadable, *problems]
    if not request.source:
        told = any(problem.severity == "error" for problem in problems)  # a recipe's note doesn't tell it
        raise PlanError("", [*problems, *([] if told else [no_source(request)])])
    if any(problem.code == NOT_UTF8 for problem in problems):
        raise PlanError(request.source, problems)
    reads = Reads()
    with reads.during("facts"):
        target = find_target(
            request,
            machine,
            nodes,
            engine,
            topology,
            this_machine(),
            lambda: launch or read_topology(),
            manager.accelerators,
        )
        context, problems = _read_facts(request, read, manager, target, problems, token, progress)
    problems += misspelt(os.environ)
    plan, facts = _planned(context, manager, problems, reads, target.elsewhere)
    asked = (*plan.requested, *environment_asked(os.environ, plan, context))
    return Planned(msgspec.structs.replace(plan, requested=asked), facts)


def plan_context(context: Context, manager: PluginManager, problems: Iterable[Problem] = ()) -> Plan:
    """Make the plan for given facts and the problems found so far, or raise a PlanError with all of them."""
    reads = Reads()
    with reads.during("facts"):  # what the core reads itself has been read for the facts that are given
        for name in context.request.options.keys() & {option.name for option in CORE_OPTIONS}:
            context.request.asked(name)
    return _planned(context, manager, problems, reads).plan


def _read_facts(
    request: Request,
    recipe: Recipe | None,
    manager: PluginManager,
    target: Target,
    problems: list[Problem],
    token: Token,
    progress: Progress | None,
) -> tuple[Context, list[Problem]]:
    """Everything that plugins may know, and every problem so far; a PlanError where nothing can be read."""
    named = request.value("adapter")
    allow_pickle = request.value("allow_pickle", False)
    access = Access(
        token,
        request.value("cache_dir"),
        request.value("local_files_only", False),
        progress,
        stores_of(manager),
    )
    checkpoint, found = read_checkpoint(
        request.source,
        revision=request.value("revision", ""),
        # that of the adapter named by an option isn't the source's
        adapter_revision="" if isinstance(named, str) else request.value("adapter_revision", ""),
        allow_pickle=allow_pickle,
        gguf_file=request.value("gguf_file", ""),
        **access._asdict(),
    )
    problems = [*problems, *found]
    if not checkpoint.config and any(p.severity == "error" for p in problems):
        raise PlanError(without_secrets(request.source), [*problems, *target.problems])
    request, unfit = fit_to_checkpoint(request, recipe, checkpoint.model_type, checkpoint.config, manager)
    problems += unfit
    architectures = manager.architectures
    kind = checkpoint.model_type
    if kind in architectures.conflicts:
        problems.append(several_plugins("architecture", "model type", kind, architectures.conflicts))
    beside, found_beside = read_beside(request, checkpoint, access, allow_pickle=allow_pickle)
    context = Context(
        request=request,
        checkpoint=checkpoint,
        beside=beside,
        machine=target.machine,
        topology=target.topology,
        library=msgspec.structs.replace(
            read_library(checkpoint.config, progress=progress), registrations=read_registrations()
        ),
        architectures={name: item for name, (_, item) in architectures.found.items()},
    )
    return context, [*problems, *target.problems, *found_beside]


def _planned(
    context: Context, manager: PluginManager, problems: Iterable[Problem], reads: Reads, elsewhere: str = ""
) -> Planned:
    decisions = Decisions(context, manager, [*problems, *broken_plugins(manager)], reads)
    decisions.run()
    decisions.problems += stated_facts(decisions.decisions, context)
    with reads.during("request"):
        decisions.problems += unknown_trainer_fields(context.request)
    facts: LoadFacts | None = None
    shortcuts: tuple[Shortcut, ...] = ()
    if (
        decisions.whole and not elsewhere and not _errors(decisions.problems)
    ):  # what is prepared on this machine shortens no load on another
        plan = decisions.plan()
        read = read_load_facts(plan, context.topology, listings_of(context), stores_of(manager))
        facts = read._replace(machine=context.machine)
        shortcuts = decisions.shortcuts(plan, facts)
    declared = manager.options.found
    if facts is not None and not _errors(decisions.problems):
        decisions.problems += unread(context.request, reads, declared)
    if _errors(decisions.problems):
        raise PlanError(context.request.source, decisions.problems) from decisions.cause
    asked = ledger_of(context.request, reads, declared, decisions.decisions, decisions.problems)
    about = {
        "warnings": tuple(decisions.problems),
        "elsewhere": elsewhere,
        "shortcuts": shortcuts,
        "requested": asked,
    }
    return Planned(msgspec.structs.replace(decisions.plan(), **about), facts)


def _errors(problems: Iterable[Problem]) -> bool:
    return any(problem.severity == "error" for problem in problems)


def _refuse_changes(given: Mapping[str, Any]) -> None:
    """Nothing can be changed about a plan."""
    said = ", ".join(f"{name}={value!r}" for name, value in given.items())
    if said:
        raise LoadkitError(
            f"load() was given a plan and {said}: a plan is run as it is; make another with loadkit.plan(…, {said})"
        )
