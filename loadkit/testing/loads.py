"""A scenario's checkpoint, loaded once with the plugin taking part, for all checks that ask."""

from __future__ import annotations

import functools
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from loadkit.errors import AuditError, PlanError
from loadkit.hooks.contained import raised
from loadkit.schema.plans import Plan
from loadkit.testing.kit import NotApplicable
from loadkit.testing.scenarios import Scenario, folder_of
from loadkit.testing.subjects import Subject
from loadkit.testing.traces import Compared
from loadkit.testing.watching import Seen

__all__ = ["Attempt", "attempt", "folder", "load_plan", "loaded", "why_not"]


@dataclass
class Attempt:
    """What came of a load.

    Parameters:
        loaded: the `Loaded`; None where there is none.
        error: what stopped it; None where nothing did. An `AuditError` has the `Loaded` too.
        seen: what the plugin did beside answering.
        compared: the tensors that it found to be as they should.
        called: the hooks that were called.
    """

    loaded: Any = None
    error: Exception | None = None
    seen: Seen = field(default_factory=Seen)
    compared: list[Compared] = field(default_factory=list)
    called: set[str] = field(default_factory=set)


def attempt(
    subject: Subject,
    scenario: Scenario,
    options: Mapping[str, Any] | None = None,
    source: Path | None = None,
    *,
    unused: bool = False,
) -> Attempt:
    """Load a scenario's checkpoint; what was loaded from elsewhere (`source`) isn't kept.

    Parameters:
        options: instead of the scenario's.
        unused: a model that no check runs: libraries repack quantized weights as soon as one runs.

    Raises:
        NotApplicable: the plugin can't be asked.
    """
    manager = subject.manager()
    given = dict(scenario.options if options is None else options)
    key = (f"{scenario.name}{' unused' if unused else ''}", msgspec.json.encode(given, enc_hook=repr))
    if source is None and key in subject.loads:
        kept: Attempt = subject.loads[key]
        return kept
    from loadkit.loading.load import load

    found = Attempt()
    manager.seen, manager.compared, manager.called = found.seen, found.compared, found.called
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found.loaded = load(
                source or folder(scenario), scenario.profile or None, plugin_manager=manager, **given
            )
        except Exception as error:  # of a library underneath, or of loadkit: it is the plugin that was tried
            found.error = error
    if source is None:
        subject.loads[key] = found
    return found


def loaded(subject: Subject, scenario: Scenario, *, unused: bool = False) -> Any:
    """The `Loaded` of a scenario; `NotApplicable` where it isn't as planned, which LK501 judges."""
    found = attempt(subject, scenario, unused=unused)
    if found.error is not None:
        raise NotApplicable("it isn't loaded as it was planned (LK501)") from found.error
    return found.loaded


def load_plan(subject: Subject, plan: Plan) -> Any:
    """The `Loaded` of a plan, with the plugin taking part, whatever the audit says; nothing is kept."""
    from loadkit.loading.load import load

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load(plan, strict=False, plugin_manager=subject.manager())


def why_not(error: Exception) -> str:
    """What stopped a load, in a sentence."""
    if isinstance(error, AuditError):
        return f"the audit finds: {'; '.join(str(f) for f in error.findings if f.severity == 'error')}"
    if isinstance(error, PlanError):
        return f"it can't be planned: {next(p for p in error.problems if p.severity == 'error').message}"
    return raised(error)


def folder(scenario: Scenario) -> Path:
    """Where a scenario's checkpoint is."""
    return folder_of(scenario, Path(_checkpoints().name))


@functools.cache
def _checkpoints() -> tempfile.TemporaryDirectory[str]:
    """Where tiny checkpoints are made, once a process."""
    return tempfile.TemporaryDirectory(prefix="loadkit-conformance-")
