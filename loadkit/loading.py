"""Run a plan: load, prepare, attach, audit. The one place of the core that imports torch and transformers."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loadkit import hookspecs as hooks
from loadkit.audit import audit
from loadkit.errors import AuditError, LoadError, LoadkitError
from loadkit.from_pretrained import load_model, load_processing_class
from loadkit.manager import PluginManager, default_manager
from loadkit.measure import measure, peak_memory
from loadkit.pipeline import make_plan
from loadkit.plans import Plan
from loadkit.report import Report

__all__ = ["Loaded", "LoadkitWarning", "load"]


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

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, a processor's own included; None where there is none."""
        return getattr(self.processing_class, "tokenizer", self.processing_class)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Save the model (with an adapter: the adapter alone, as PEFT does) and its processing class.

        Parameters:
            folder: where to; made where it isn't there.

        Returns:
            The folder.
        """
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        self.model.save_pretrained(target)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(target)
        return target

    def __iter__(self) -> Iterator[Any]:
        return iter((self.model, self.processing_class))

    def __repr__(self) -> str:
        return f"<Loaded {type(self.model).__name__} from {self.plan.checkpoint.source!r}>"


def load(
    source: str | os.PathLike[str] | Plan,
    profile: str | None = None,
    *,
    token: str | bool | None = None,
    strict: bool = True,
    plugin_manager: PluginManager | None = None,
    progress: Callable[[str], None] | None = None,
    **options: Any,
) -> Loaded:
    """Load a model and its tokenizer or processor, exactly as planned.

    Parameters:
        source: a folder, a Hub id, an adapter repository, or a `Plan` to run as it is.
        profile: a profile's name ("qlora"), or the path of a profile file.
        token: the Hub token, as huggingface_hub takes it.
        strict: whether a finding of the audit fails the load; False turns errors into a `LoadkitWarning`.
        plugin_manager: the plugins to use; all installed ones by default.
        progress: called with a short sentence as each phase begins.
        **options: what is wanted, by the options' names (`loadkit plan --help` lists them).

    Returns:
        The loaded model, which unpacks as `(model, processing_class)`.

    Raises:
        PlanError: the request can't be met; nothing was loaded.
        LoadError: the libraries underneath failed.
        AuditError: the model isn't what was planned (`error.loaded` has it).
        PluginError: a plugin failed while loading.
    """
    manager = plugin_manager or default_manager()
    say = progress or (lambda _: None)
    clock = _Clock()
    with clock("plan"):
        plan = _planned(source, profile, options, token=token, plugin_manager=manager, progress=progress)
    say("importing torch and transformers")
    with clock("import"):
        _import()
    say(f"loading {plan.model_class.model_class}")
    with clock("load"):
        model, loading = load_model(plan, manager, token)
    say("preparing")
    with clock("prepare"):
        model = _acted(
            manager.first(hooks.loadkit_prepare_model, plan=plan, model=model, preparation=plan.preparation),
            "prepare_model",
            "preparation",
        )
    if plan.adapter is not None:
        say("attaching the adapter")
        with clock("adapter"):
            model = _acted(
                manager.first(hooks.loadkit_attach_adapter, plan=plan, model=model, adapter=plan.adapter),
                "attach_adapter",
                plan.adapter.peft_type,
            )
    with clock("processing"):
        processing_class = load_processing_class(plan, token)
    say("auditing")
    with clock("audit"):
        findings = audit(plan, model, loading, manager)
        measurements = measure(model)
    report = Report(
        measurements=measurements,
        findings=findings,
        loading=loading,
        seconds=clock.seconds,
        peak_memory=peak_memory(),
    )
    return _judged(Loaded(model, processing_class, plan, report), strict)


def _planned(
    source: str | os.PathLike[str] | Plan, profile: str | None, options: Mapping[str, Any], **about: Any
) -> Plan:
    if not isinstance(source, Plan):
        return make_plan(source, profile, **about, **options)
    if profile is not None or options:
        given = ", ".join(
            ([f"profile={profile!r}"] if profile else []) + [f"{k}={v!r}" for k, v in options.items()]
        )
        raise LoadkitError(
            f"load() was given a plan and {given}: a plan is run as it is; make another with loadkit.plan(…, {given})"
        )
    return source


def _import() -> None:
    """Pay for the libraries here, so that the report doesn't charge them to loading."""
    import torch  # noqa: F401
    import transformers.modeling_utils  # noqa: F401


def _acted(model: Any, hook: str, what: str) -> Any:
    if model is None:
        raise LoadError(
            f"no plugin carried out {what}: loadkit_{hook} has no taker; `loadkit plugins --hook loadkit_{hook}` shows who implements it"
        )
    return model


def _judged(loaded: Loaded, strict: bool) -> Loaded:
    errors = [f for f in loaded.report.findings if f.severity == "error"]
    source = loaded.plan.checkpoint.source
    if errors and strict:
        raise AuditError(source, loaded.report.findings, loaded)
    for finding in errors:
        warnings.warn(f"{source!r}: {finding}", LoadkitWarning, stacklevel=3)
    return loaded


class _Clock:
    """Seconds by phase, in order."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[phase] = round(time.perf_counter() - start, 4)
