"""Load: plan the request, run the plan, hold the model against it."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec

from loadkit.audit.audit import audit, audit_settings
from loadkit.audit.measurements import measure, peak_memory
from loadkit.audit.verification import verifies_fully
from loadkit.audit.weight_comparison import compare_with_files
from loadkit.errors import AuditError, Finding, LoadError, LoadkitError
from loadkit.facts.load_facts import read_load_facts
from loadkit.facts.machine.topology import read_topology
from loadkit.hooks import hookspecs as hooks
from loadkit.hooks.manager import PluginManager, default_manager
from loadkit.loading import from_pretrained
from loadkit.loading.download import fetch_adapters, fetch_small_files
from loadkit.loading.finishing import finish_model
from loadkit.loading.fresh_weights import drawn_anew, starts_anew
from loadkit.loading.imports import import_libraries
from loadkit.loading.known_noise import without_known_noise
from loadkit.loading.loaded import BareModel, Loaded, LoadkitWarning
from loadkit.loading.phases import run_phases
from loadkit.loading.process_wide import one_at_a_time
from loadkit.loading.registrations import import_registrations
from loadkit.loading.speed.gc_pause import pause_gc
from loadkit.loading.speed.prefetch import ReadAhead
from loadkit.loading.speed.run_aids import gather_aids
from loadkit.loading.tokenizer_setup import finish_processing
from loadkit.loading.use_cache import save_own_use_cache
from loadkit.manifest.manifest import Manifest
from loadkit.manifest.replay import plan_of
from loadkit.planning.pipeline import Planned, plan_load
from loadkit.ranks import Ranks, ranks_of_this_launch
from loadkit.ranks.device import take_own_device
from loadkit.request.recipes import Recipe
from loadkit.schema.plans import Plan
from loadkit.schema.reports import Loading, Report, Section
from loadkit.schema.request import Progress, Token
from loadkit.text.output_streams import forgiving_output

__all__ = ["Loaded", "LoadkitWarning", "load", "load_processing_class"]


def load(
    source: str | os.PathLike[str] | Plan | None = None,
    profile: str | None = None,
    *,
    recipe: str | os.PathLike[str] | Recipe | None = None,
    replay: Manifest | str | os.PathLike[str] | None = None,
    token: Token = None,
    strict: bool = True,
    plugin_manager: PluginManager | None = None,
    progress: Progress | None = None,
    together: bool = True,
    **options: Any,
) -> Loaded:
    """Load a model and its tokenizer or processor, exactly as planned.

    Under a launcher (torchrun, accelerate, SLURM) all its processes call this, and load together: the same
    plan and commit, one download a node, one verdict.

    Parameters:
        source: a folder, a Hub id, an address that a plugin opens, an adapter of any of them, or a `Plan` to
            run as it is; None for the model that the recipe names.
        profile: a profile's name ("qlora"), or the path of a profile file.
        recipe: a training recipe (YAML) of TRL, the alignment-handbook, open-r1, axolotl or LLaMA-Factory.
        replay: a manifest (or its file) to load again as it was; nothing else is given then.
        token: the Hub token, as huggingface_hub takes it.
        strict: whether a finding of the audit fails the load; False turns errors into a `LoadkitWarning`.
        plugin_manager: the plugins to use; all installed ones by default.
        progress: called with a short sentence as each phase begins; on rank 0 only.
        together: whether all processes of the launch load; False where this one loads on its own.
        **options: what is wanted, by the options' names (`loadkit plan --help` lists them).

    Returns:
        The loaded model, which unpacks as `(model, processing_class)`.

    Raises:
        PlanError: the request can't be met; nothing was loaded.
        ReplayError: what a manifest says isn't here any more.
        LoadError: the libraries underneath failed.
        AuditError: the model isn't what was planned (`error.loaded` has it).
        PluginError: a plugin failed while loading.
        RankError: another process of the launch failed, or would load something else.

    Example:
        loaded = loadkit.load("./my-mistral", "qlora", lora_r=8)
        model, tokenizer = loaded
        print(loaded.report)
    """
    manager, launch, clock = plugin_manager or default_manager(), read_topology(), _Clock()
    ranks = ranks_of_this_launch(together, launch)
    say = ranks.reporting(progress)

    def planning() -> Planned:
        made = source
        if replay is not None:
            _alone(replay, source=source, profile=profile, recipe=recipe, **options)
            made = plan_of(replay, strict=strict, token=token, plugin_manager=manager, progress=say)
        return plan_load(
            made, profile, recipe=recipe, token=token, launch=launch, plugin_manager=manager, progress=say, **options
        )  # fmt: skip

    def loading() -> Loaded:
        with clock("plan"):
            planned = ranks.plan(planning)
        return _run(planned, manager, token, say or (lambda _: None), ranks, clock)

    with forgiving_output(), without_known_noise():
        loaded = ranks.together(loading)
    return _judged(loaded, strict)


def _run(
    planned: Planned, manager: PluginManager, token: Token, say: Progress, ranks: Ranks, clock: _Clock
) -> Loaded:
    """Run a plan: load, prepare, attach, audit."""
    plan, facts = planned
    if facts is None:
        raise LoadkitError(
            f"this plan for {plan.checkpoint.source!r} is for {plan.elsewhere}: it can't be loaded here; load there with the same "
            "request, or plan for here: leave machine, nodes and topology out"
        )
    full = verifies_fully(plan.request.value("verify"), os.environ)
    with clock("plan"):
        aids = gather_aids(plan, facts, manager, say)
        if aids.ready is None and not starts_anew(plan):  # what is stored is read meanwhile, to be proved
            ReadAhead(facts.weight_files)
    say("importing torch and transformers")
    with clock("import"), pause_gc():
        import_libraries(plan, facts.machine)
        import_registrations(plan)
        take_own_device(plan, facts.topology)
    say("loading the tokenizer or processor")
    with clock("processing"):  # first: a token that can't be had is refused before the weights are read
        ranks.first_on_node("the small files", lambda: fetch_small_files(plan, facts, token))
        with one_at_a_time():
            processing_class = from_pretrained.load_processing_class(plan, token)
            vocabulary = finish_processing(plan, processing_class)

    def comparing(bare: BareModel) -> Sequence[Finding]:
        if full:
            say("comparing every tensor with the files")
        with clock("comparison"), one_at_a_time():
            found = compare_with_files(plan, bare.weight_files, bare.model, manager, bare.loading, full=full)
        return drawn_anew(found, compared=bool(bare.weight_files)) if starts_anew(plan) else found

    say(f"loading {plan.model_class.model_class}")
    with clock("load"), ranks.same_random_numbers("loading"):
        bare = from_pretrained.load_model(
            plan, facts, manager, token, say, aids, comparing, ranks.first_on_node
        )
    model, loading = bare.model, bare.loading
    save_own_use_cache(model, bare.own_use_cache)
    adapters = ranks.first_on_node("the adapters", lambda: fetch_adapters(plan, facts, token))
    with _missing_named(plan, loading), ranks.same_random_numbers("phases"), one_at_a_time(), pause_gc():
        model, changes = run_phases(plan, model, vocabulary, adapters, manager, clock, say)
        model, finished, unlike = finish_model(plan, model, manager, clock, say, full=full)
    say("auditing")
    with clock("audit"):
        with one_at_a_time():
            found = audit(plan, model, loading, processing_class, manager, [*bare.findings, *unlike])
            found, readings = audit_settings(plan, model, processing_class, manager, found)
        findings = ranks.finish(found)
        measurements = measure(plan, model, manager)
    report = Report(
        measurements=measurements,
        findings=findings,
        readings=readings,
        finished=finished,
        changes=changes,
        loading=loading,
        seconds=clock.seconds,
        peak_memory=peak_memory(),
        shortcuts=bare.shortcuts,
        sections=tuple(
            msgspec.structs.replace(section, plugin=plugin)
            for plugin, section in manager.collect_named(
                hooks.loadkit_report_sections, Section, plan=plan, model=model
            )
        ),
        workarounds=tuple(manager.collect(hooks.loadkit_workarounds, str, plan=plan)),
    )
    return Loaded(model, processing_class, plan, report)


def load_processing_class(
    source: str | os.PathLike[str] | Plan | None = None,
    profile: str | None = None,
    *,
    recipe: str | os.PathLike[str] | Recipe | None = None,
    token: Token = None,
    plugin_manager: PluginManager | None = None,
    **options: Any,
) -> Any:
    """Load the tokenizer or processor alone, as `load` would: planned template, padding side and tokens.

    Parameters:
        source, profile, recipe, token, plugin_manager, **options: as `load` takes them.

    Returns:
        The tokenizer or processor; None where the checkpoint has neither.

    Raises:
        PlanError: the request can't be met.
        LoadError: transformers failed, or a token that was asked for isn't in the vocabulary.
    """
    plan, facts = plan_load(
        source, profile, recipe=recipe, token=token, plugin_manager=plugin_manager, **options
    )
    fetch_small_files(plan, facts or read_load_facts(plan), token)
    with one_at_a_time():
        loaded = from_pretrained.load_processing_class(plan, token)
        finish_processing(plan, loaded)
    return loaded


def _alone(replay: object, **given: Any) -> None:
    """Nothing can be changed about a replay."""
    more = [name for name, value in given.items() if value is not None]
    if more:
        raise LoadkitError(
            f"load() was given a manifest to replay and {', '.join(more)}: it is loaded again as it was; leave {', '.join(more)} out"
        )


@contextmanager
def _missing_named(plan: Plan, loading: Loading) -> Iterator[None]:
    """A phase that fails over missing tensors says so: the audit, which would, comes after the phases."""
    try:
        yield
    except LoadkitError as error:
        if not loading.missing:
            raise
        some = ", ".join(loading.missing[:3]) + (" …" if len(loading.missing) > 3 else "")
        raise LoadError(
            f"{len(loading.missing)} tensors aren't in {plan.checkpoint.source!r} ({some}), and then: {error}\n"
            f"    fix: check that {plan.model_class.model_class} is the class of this checkpoint, and that its files are complete"
        ) from error


def _judged(loaded: Loaded, strict: bool) -> Loaded:
    errors = [f for f in loaded.report.findings if f.severity == "error"]
    source = loaded.plan.checkpoint.source
    if errors and strict:
        raise AuditError(source, loaded.report.findings, loaded)
    if errors:
        said = "\n".join(f"  - {finding}" for finding in errors)
        warnings.warn(
            f"{source!r} isn't what was planned (strict=False):\n{said}", LoadkitWarning, stacklevel=3
        )
    return loaded


class _Clock:
    """Seconds by phase, in order; a phase in several parts adds up, and one within another is its own."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._counted = 0.0

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start, counted = time.perf_counter(), self._counted
        self.seconds.setdefault(phase, 0.0)
        yield
        own = time.perf_counter() - start - (self._counted - counted)
        self._counted += own
        self.seconds[phase] = round(self.seconds[phase] + own, 4)
