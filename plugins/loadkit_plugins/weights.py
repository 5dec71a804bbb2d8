"""weights: every tensor of the model comes from the checkpoint; one that doesn't is random."""

from __future__ import annotations

from collections.abc import Sequence

from loadkit import Finding, Loading, Plan, Severity, hookimpl

HEADED = ("sequence-classification", "token-classification")
"""Tasks whose head is new when the checkpoint was made for another task."""

SHOWN = 5


@hookimpl
def loadkit_audit_model(plan: Plan, loading: Loading) -> Sequence[Finding]:
    findings = []
    if loading.missing:
        new_head = plan.model_class.task in HEADED and all(
            "." not in n.removesuffix(".weight").removesuffix(".bias") or _in_head(n) for n in loading.missing
        )
        findings.append(
            _finding(
                "missing-weights",
                f"{len(loading.missing)} tensors aren't in the checkpoint and hold random values: {_some(loading.missing)}",
                severity="warning" if new_head else "error",
                remedy="train the new head before using it"
                if new_head
                else "check that the checkpoint is of this architecture and complete; `task` chooses another class",
            )
        )
    if loading.mismatched:
        findings.append(
            _finding(
                "mismatched-weights",
                f"{len(loading.mismatched)} tensors have another shape: {_some(loading.mismatched)}",
                remedy="config.json and the weight files don't belong together",
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


def _in_head(name: str) -> bool:
    return name.split(".")[0] in ("classifier", "score", "pooler", "classification_head", "qa_outputs")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _finding(code: str, message: str, severity: Severity = "error", remedy: str = "") -> Finding:
    return Finding(
        stage="weights", plugin="weights", code=code, message=message, severity=severity, remedy=remedy
    )
