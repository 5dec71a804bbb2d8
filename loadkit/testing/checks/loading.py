"""LK5: what it decides can be loaded, used, saved and loaded again."""

from __future__ import annotations

import functools
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loadkit.errors import AuditError
from loadkit.testing.kit import NotApplicable, Unmet, check
from loadkit.testing.scenarios import Scenario, folder_of
from loadkit.testing.subjects import Subject

__all__ = ["loaded"]

rule = functools.partial(check, "loading")


@rule(
    "LK501",
    "What is loaded is what was planned.",
    "make the loaded model what your stage decided",
    scenarios="loaded",
)
def audit_passes(subject: Subject, scenario: Scenario) -> None:
    try:
        found = _load(subject, scenario).report.findings
    except AuditError as error:
        raise Unmet(
            f"the audit finds: {'; '.join(str(f) for f in error.findings if f.severity == 'error')}"
        ) from error
    warned = [f for f in found if f.plugin == subject.name and f.severity == "warning"]
    if warned:
        raise Unmet(f"it warns of its own work: {warned[0]}")


@rule("LK502", "The model runs.", "see that a forward pass gives finite numbers", scenarios="loaded")
def forward(subject: Subject, scenario: Scenario) -> None:
    import torch

    if not bool(torch.isfinite(_logits(loaded(subject, scenario).model)).all()):
        raise Unmet("a forward pass gives numbers that aren't finite")


@rule(
    "LK503",
    "A model that is to train trains.",
    "let gradients reach what the plan trains",
    scenarios="loaded",
)
def backward(subject: Subject, scenario: Scenario) -> None:
    found = loaded(subject, scenario)
    if not found.plan.preparation.training:
        raise NotApplicable("nothing trains in this scenario")
    ids = _ids(found.model)
    found.model(input_ids=ids, labels=ids).loss.backward()
    trained = {n: p for n, p in found.model.named_parameters() if p.requires_grad}
    if not any(p.grad is not None and bool(p.grad.any()) for p in trained.values()):
        raise Unmet(f"no gradient reaches any of the {len(trained)} parameters that train")


@rule(
    "LK504",
    "What is saved loads again, the same.",
    "save all that the model is made of, under the names that loading reads",
    scenarios="loaded",
)
def saves(subject: Subject, scenario: Scenario) -> None:
    import torch

    first = loaded(subject, scenario)
    with tempfile.TemporaryDirectory() as folder:
        first.save_pretrained(folder)
        of_the_adapter = ("lora_", "peft_", "adapter")
        options = {k: v for k, v in scenario.options.items() if not k.startswith(of_the_adapter)}
        again = loaded(subject, scenario, options, folder=Path(folder))
        if not torch.equal(_logits(first.model).nan_to_num(), _logits(again.model).nan_to_num()):
            raise Unmet("the model that was saved and loaded again computes something else")


def loaded(
    subject: Subject, scenario: Scenario, options: Mapping[str, Any] | None = None, folder: Path | None = None
) -> Any:
    """A scenario's checkpoint, loaded with the plugin taking part; LK501 judges whether it is as planned."""
    try:
        return _load(subject, scenario, options, folder)
    except AuditError as error:
        raise NotApplicable("what is loaded isn't what was planned (LK501)") from error


def _load(
    subject: Subject, scenario: Scenario, options: Mapping[str, Any] | None = None, folder: Path | None = None
) -> Any:
    from loadkit.loading.load import load

    manager = subject.manager()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load(
            folder or folder_of(scenario, Path(_checkpoints().name)),
            scenario.profile or None,
            plugin_manager=manager,
            **(scenario.options if options is None else options),
        )


@functools.cache
def _checkpoints() -> tempfile.TemporaryDirectory[str]:
    """Where tiny checkpoints are made, once a process."""
    return tempfile.TemporaryDirectory(prefix="loadkit-conformance-")


def _ids(model: Any) -> Any:
    import torch

    return torch.arange(6, 22).reshape(2, 8) % model.config.get_text_config().vocab_size


def _logits(model: Any) -> Any:
    import torch

    mode = model.training
    model.eval()
    with torch.no_grad():
        found = model(input_ids=_ids(model)).logits
    model.train(mode)
    return found
