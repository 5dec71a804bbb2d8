"""Run a plan: load, prepare, attach, audit. The one place of the core that imports torch and transformers."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loadkit.audit.audit import audit
from loadkit.audit.measurements import measure, peak_memory
from loadkit.audit.weight_comparison import compare_with_files
from loadkit.errors import AuditError, LoadError, LoadkitError
from loadkit.facts.checkpoint.local_weight_files import weight_paths
from loadkit.facts.machine.topology import read_topology
from loadkit.hooks import hookspecs as hooks
from loadkit.hooks.manager import PluginManager, default_manager
from loadkit.loading import from_pretrained
from loadkit.loading.download import fetch_adapters, fetch_small_files
from loadkit.loading.from_pretrained import load_model
from loadkit.loading.inference_mode import InferenceMode
from loadkit.loading.phases import Given, run_phases
from loadkit.loading.speed.gc_pause import pause_gc
from loadkit.loading.speed.page_release import released_while_loading
from loadkit.loading.speed.prefetch import ReadAhead
from loadkit.loading.speed.run_aids import lend
from loadkit.loading.tokenizer_setup import finish_processing
from loadkit.loading.use_cache import keep_own_cache
from loadkit.manifest.manifest import Manifest, make_manifest
from loadkit.manifest.replay import plan_of
from loadkit.planning.pipeline import make_plan
from loadkit.ranks import Ranks, ranks_of_this_launch
from loadkit.ranks.device import take_own_device
from loadkit.request.recipes import Recipe
from loadkit.schema.plans import Plan
from loadkit.schema.reports import Loading, Report
from loadkit.schema.request import Progress, Token

__all__ = ["Loaded", "LoadkitWarning", "load", "load_processing_class"]


NEUTRAL = (None, True, "gaussian")
"""Values of `init_lora_weights` after which a fresh adapter changes nothing."""


class LoadkitWarning(UserWarning):
    """What `strict=False` lets pass, and what the plan warned of."""


class Loaded:
    """A loaded model with its plan and its proof. Unpacks as `(model, processing_class)`.

    Parameters:
        model: the `transformers.PreTrainedModel`, or the `peft.PeftModel` around it.
        processing_class: the tokenizer or processor; None where the checkpoint has neither.
        plan: what was planned.
        report: what was found.
    """

    def __init__(self, model: Any, processing_class: Any, plan: Plan, report: Report) -> None:
        self.model = model
        self.processing_class = processing_class
        self.plan = plan
        self.report = report
        self._versions = _versions(model)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, a processor's own included; None where there is none."""
        return getattr(self.processing_class, "tokenizer", self.processing_class)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Save the model (with an adapter: the adapter alone, as PEFT does) and its processing class.

        The configs that are written hold the checkpoint's own `use_cache`, whatever training needed; so do those that a
        trainer writes with `model.save_pretrained`.

        Parameters:
            folder: where to; made where it isn't there.

        Returns:
            The folder.
        """
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        grown = any(c.phase == "vocabulary" for c in self.report.changes) and self.plan.adapter is not None
        self.model.save_pretrained(target, **({"save_embedding_layers": True} if grown else {}))
        if self.processing_class is not None:
            self.processing_class.save_pretrained(target)
        return target

    def manifest(self, progress: Progress | None = None) -> Manifest:
        """Take down what was loaded, from what and by what, so that it can be loaded again. Every file is read, for its hash.

        Parameters:
            progress: called with a short sentence for each file.
        """
        return make_manifest(self.plan, self.report, progress)

    def for_inference(self) -> InferenceMode:
        """Turn evaluation mode and the key-value cache on, at once.

        Returns:
            What takes it back: at the end of a `with` block, or by its `undo()`.
        """
        return InferenceMode(self.model)

    def reference(self, *, trained_in_full: bool | None = None) -> Any:
        """The frozen model as it was loaded, for preference training, without a second load.

        With an adapter it is the same base with the adapter off, or, where the adapter isn't a fresh one, with a frozen copy of it on.
        Without one it shares the policy's storage, and refuses to run once that has trained; a policy that is trained in full
        gets a real copy instead. Call it before training.

        Parameters:
            trained_in_full: whether the policy's own weights will train. By default as planned: training, without an adapter,
                over a base that isn't quantized. Give False where the trainer injects an adapter itself.

        Returns:
            A `torch.nn.Module` with `forward`, `generate` and `config`, in evaluation mode, without trainable parameters.

        Raises:
            LoadkitError: the reference is an adapter that has been trained since it was loaded.
        """
        from loadkit.loading.reference_model import adapter_reference, frozen_copy, shared_reference

        plan = self.plan
        if plan.adapter is not None and hasattr(self.model, "disable_adapter"):
            init = plan.adapter.options.get("init_lora_weights", True)
            return adapter_reference(
                self.model,
                plan.adapter.name,
                trained=_versions(self.model) != self._versions,
                starts_neutral=not plan.adapter.source and init in NEUTRAL,
            )
        if trained_in_full is None:
            trained_in_full = plan.preparation.training and not plan.preparation.kbit
        return frozen_copy(self.model) if trained_in_full else shared_reference(self.model)

    def __iter__(self) -> Iterator[Any]:
        return iter((self.model, self.processing_class))

    def __repr__(self) -> str:
        return f"<Loaded {type(self.model).__name__} from {self.plan.checkpoint.source!r}>"


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

    Under a launcher (torchrun, accelerate, SLURM) all its processes call this, and load together: the same plan and
    commit, one download a node, one verdict.

    Parameters:
        source: a folder, a Hub id, an adapter repository, or a `Plan` to run as it is; None for the model that the recipe names.
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
    """
    manager = plugin_manager or default_manager()

    def planning() -> Plan:
        made = source
        if replay is not None:
            _alone(replay, source=source, profile=profile, recipe=recipe, **options)
            made = plan_of(replay, strict=strict, token=token, plugin_manager=manager, progress=told)
        return _planned(made, profile, recipe, options, token=token, plugin_manager=manager, progress=told)

    with ranks_of_this_launch(together) as ranks:
        told = ranks.reporting(progress)
        return _judged(_load(planning, manager, token, told, ranks), strict)


def _load(
    planning: Callable[[], Plan],
    manager: PluginManager,
    token: Token,
    progress: Progress | None,
    ranks: Ranks,
) -> Loaded:
    say = progress or (lambda _: None)
    clock = _Clock()
    with clock("plan"):
        plan = ranks.plan(planning)
    _refuse_elsewhere(plan)
    with clock("plan"):
        lent = lend(plan, manager, say)
        if lent.first is None:  # what is stored is read meanwhile, to be proved
            ReadAhead(weight_paths(plan))
    say("importing torch and transformers")
    with clock("import"), pause_gc():
        _import()
        take_own_device(plan, read_topology())
    say("loading the tokenizer or processor")
    with clock(
        "processing"
    ):  # first, so that a token that can't be had is refused before the weights are read
        ranks.first_on_node("the small files", lambda: fetch_small_files(plan, token))
        processing_class = from_pretrained.load_processing_class(plan, token)
        vocabulary = finish_processing(plan, processing_class)
    say(f"loading {plan.model_class.model_class}")
    read_and_left = [] if lent.first else _read_and_left(plan)
    with clock("load"), released_while_loading(read_and_left), ranks.same_random_numbers("loading"):
        model, loading, own_cache, shortcuts = load_model(
            plan, manager, token, say, lent, ranks.first_on_node
        )
    keep_own_cache(model, own_cache)
    with clock("comparison"):
        compared = compare_with_files(plan, model, manager)
    adapters = ranks.first_on_node("the adapters", lambda: fetch_adapters(plan, token))
    given = Given(vocabulary, adapters)
    with _missing_told(plan, loading), ranks.same_random_numbers("phases"), pause_gc():
        model, changes = run_phases(plan, model, given, manager, clock, say)
    say("auditing")
    with clock("audit"):
        findings = ranks.finish(audit(plan, model, loading, processing_class, manager, compared))
        measurements = measure(plan, model, manager)
    report = Report(
        measurements=measurements,
        findings=findings,
        changes=changes,
        loading=loading,
        seconds=clock.seconds,
        peak_memory=peak_memory(),
        shortcuts=shortcuts,
        workarounds=tuple(manager.collect(hooks.loadkit_workarounds, str, plan=plan)),
    )
    return Loaded(model, processing_class, plan, report)


@contextmanager
def _missing_told(plan: Plan, loading: Loading) -> Iterator[None]:
    """A phase that fails over tensors that aren't there says so: the audit, which would, comes after the phases."""
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


def _alone(replay: object, **given: Any) -> None:
    """Nothing can be changed about a replay."""
    more = [name for name, value in given.items() if value is not None]
    if more:
        raise LoadkitError(
            f"load() was given a manifest to replay and {', '.join(more)}: it is loaded again as it was; leave {', '.join(more)} out"
        )


def load_processing_class(
    source: str | os.PathLike[str] | Plan | None = None,
    profile: str | None = None,
    *,
    recipe: str | os.PathLike[str] | Recipe | None = None,
    token: Token = None,
    plugin_manager: PluginManager | None = None,
    **options: Any,
) -> Any:
    """Load the tokenizer or processor alone, as `load` would: planned template, padding side and special tokens.

    Parameters:
        source, profile, recipe, token, plugin_manager, **options: as `load` takes them.

    Returns:
        The tokenizer or processor; None where the checkpoint has neither.

    Raises:
        PlanError: the request can't be met.
        LoadError: transformers failed, or a token that was asked for isn't in the vocabulary.
    """
    plan = _planned(
        source, profile, recipe, options, token=token, plugin_manager=plugin_manager or default_manager()
    )
    loaded = from_pretrained.load_processing_class(plan, token)
    finish_processing(plan, loaded)
    return loaded


def _planned(
    source: str | os.PathLike[str] | Plan | None,
    profile: str | None,
    recipe: str | os.PathLike[str] | Recipe | None,
    options: Mapping[str, Any],
    **about: Any,
) -> Plan:
    if not isinstance(source, Plan):
        return make_plan(source, profile, recipe=recipe, **about, **options)
    named = {"profile": profile, "recipe": recipe}
    given = ", ".join(
        f"{k}={v!r}" for k, v in ({k: v for k, v in named.items() if v} | dict(options)).items()
    )
    if given:
        raise LoadkitError(
            f"load() was given a plan and {given}: a plan is run as it is; make another with loadkit.plan(…, {given})"
        )
    return source


def _refuse_elsewhere(plan: Plan) -> None:
    """A plan for machines that were named may rest on what isn't here."""
    if plan.elsewhere:
        raise LoadkitError(
            f"this plan for {plan.checkpoint.source!r} is for {plan.elsewhere}: it can't be loaded here; load there with the same "
            "request, or plan for here: leave machine, nodes and topology out"
        )


def _import() -> None:
    """Pay for the libraries here, so that the report doesn't charge them to loading."""
    import torch  # noqa: F401
    import transformers.modeling_utils  # noqa: F401


def _read_and_left(plan: Plan) -> list[Path]:
    """Weight files that are only read, to make other weights of them."""
    quantizes = plan.quantization is not None and not plan.quantization.prequantized
    return weight_paths(plan) if quantizes else []


def _versions(model: Any) -> int:
    """torch's count of in-place changes to what trains."""
    return sum(p._version for p in model.parameters() if p.requires_grad)


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
    """Seconds by phase, in order; a phase in several parts adds up."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        before = self.seconds.get(phase, 0.0)
        self.seconds[phase] = round(before + time.perf_counter() - start, 4)
