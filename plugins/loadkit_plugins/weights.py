"""weights: every tensor of the model comes from the checkpoint; one that doesn't is random."""

from __future__ import annotations

from collections.abc import Sequence

from loadkit import Finding, Loading, Plan, Severity, hookimpl

HEADED = ("sequence-classification", "token-classification")
"""Tasks whose head is new when the checkpoint was made for another task."""

NEW_HEAD = "train the new head before using it"
SHOWN = 5


@hookimpl
def loadkit_audit_model(plan: Plan, loading: Loading) -> Sequence[Finding]:
    findings = []
    if loading.missing:
        new = _new_head(plan, loading.missing)
        findings.append(
            _finding(
                "missing-weights",
                f"{len(loading.missing)} tensors aren't in the checkpoint and hold random values: {_some(loading.missing)}",
                severity="warning" if new else "error",
                remedy=NEW_HEAD
                if new
                else "check that the checkpoint is complete and of this architecture; `task` chooses another class",
            )
        )
    if loading.mismatched:
        new = _new_head(plan, [text.partition(":")[0] for text in loading.mismatched])
        findings.append(
            _finding(
                "mismatched-weights",
                f"{len(loading.mismatched)} tensors have another shape, and hold random values: {_some(loading.mismatched)}",
                severity="warning" if new else "error",
                remedy=NEW_HEAD if new else "config.json and the weight files don't belong together",
            )
        )
    if loading.errors:
        findings.append(
            _finding("conversion-errors", f"weights couldn't be converted: {_some(loading.errors)}")
        )
    if loading.unexpected and not plan.model_class.config_key:
        findings.append(
            _finding(
                "unexpected-weights",
                f"{len(loading.unexpected)} tensors of the checkpoint have no place in the model: {_some(loading.unexpected)}",
                severity="warning",
                remedy="check that the class fits the checkpoint; `loadkit plan` says why it was chosen",
            )
        )
    return findings


def _new_head(plan: Plan, names: Sequence[str]) -> bool:
    """Whether only the head is concerned, of a task whose head is trained anew."""
    return plan.model_class.task in HEADED and all(_in_head(name) for name in names)


def _in_head(name: str) -> bool:
    return name.split(".")[0] in ("classifier", "score", "pooler", "classification_head", "qa_outputs")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _finding(code: str, message: str, severity: Severity = "error", remedy: str = "") -> Finding:
    return Finding(
        stage="weights", plugin="weights", code=code, message=message, severity=severity, remedy=remedy
    )
