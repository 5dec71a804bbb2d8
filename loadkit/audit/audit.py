"""The audit: every plugin looks whether the loaded model is what its stage decided."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loadkit.errors import SEVERITIES, Finding
from loadkit.hooks import hookspecs as hooks
from loadkit.hooks.manager import PluginManager
from loadkit.schema.plans import Plan
from loadkit.schema.reports import Loading

__all__ = ["audit"]


def audit(
    plan: Plan,
    model: Any,
    loading: Loading,
    processing_class: Any,
    manager: PluginManager,
    earlier: Sequence[Finding] = (),
) -> tuple[Finding, ...]:
    """Collect what the plugins find, errors first.

    Parameters:
        loading: what `from_pretrained` said of the weights.
        processing_class: the tokenizer or processor; None where there is none.
        earlier: what was found before the phases.

    Raises:
        PluginError: a plugin failed while looking.
    """
    given = manager.collect(
        hooks.loadkit_audit_model,
        Finding,
        plan=plan,
        model=model,
        loading=loading,
        processing_class=processing_class,
    )
    found = [*earlier, *given]
    return tuple(sorted(found, key=lambda f: (SEVERITIES.index(f.severity), f.stage, f.code, f.message)))
