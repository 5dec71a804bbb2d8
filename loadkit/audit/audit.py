"""The audit: every plugin looks whether the loaded model is what its stage decided."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from loadkit.audit.packed_modules import packed_findings
from loadkit.audit.read_back import compare_with_asked, read_back
from loadkit.errors import SEVERITIES, Finding
from loadkit.hooks import hookspecs as hooks
from loadkit.hooks.manager import PluginManager
from loadkit.schema.plans import Plan
from loadkit.schema.readings import Reading
from loadkit.schema.reports import Loading

__all__ = ["audit", "audit_settings"]


def audit(
    plan: Plan,
    model: Any,
    loading: Loading,
    processing_class: Any,
    manager: PluginManager,
    earlier: Sequence[Finding] = (),
) -> tuple[Finding, ...]:
    """What the plugins find, and what was found earlier, before the phases; errors first."""
    about = {"plan": plan, "model": model, "loading": loading, "processing_class": processing_class}
    hook: Callable[..., Any] = hooks.loadkit_audit_model
    packed = packed_findings(plan, model, manager)
    found = [*earlier, *packed, *manager.collect(hook, Finding, **about)]
    return _ordered(found)


def audit_settings(
    plan: Plan, model: Any, processing_class: Any, manager: PluginManager, earlier: Sequence[Finding] = ()
) -> tuple[tuple[Finding, ...], tuple[Reading, ...]]:
    """What was found earlier and what settings differ, errors first; and every setting that was read."""
    readings = read_back(plan, model, processing_class, manager)
    found = _ordered([*earlier, *compare_with_asked(plan, readings)])
    return found, tuple(reading for _, reading in readings)


def _ordered(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(findings, key=lambda f: (SEVERITIES.index(f.severity), f.stage, f.code, f.message)))
