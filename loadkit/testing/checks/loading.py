"""LK5: what it decides can be loaded, used, saved and loaded again."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from loadkit.audit.model_access import base_of
from loadkit.errors import PlanError
from loadkit.hooks.contained import contained, raised
from loadkit.testing.checks.facts import false_facts
from loadkit.testing.kit import NotApplicable, Unmet, check, fails
from loadkit.testing.loads import attempt, load_plan, loaded, why_not
from loadkit.testing.scenarios import Scenario
from loadkit.testing.subjects import Subject
from loadkit.testing.training import Passes, logits_of, train_once

__all__ = ["saves"]

rule = functools.partial(check, "loading", scenarios="loaded")


@rule(
    "LK501",
    "What is loaded is what was planned.",
    "make the loaded model what your stage decided",
)
def audit_passes(subject: Subject, scenario: Scenario) -> None:
    found = attempt(subject, scenario)
    if isinstance(found.error, PlanError) and subject.failure_in(found.error):
        raise NotApplicable("it fails while it is planned (LK205)")
    if found.error is not None:
        if told := false_facts(subject, scenario):
            raise NotApplicable(f"what it registers isn't true ({told})")
        raise Unmet(why_not(found.error)) from found.error
    warned = [f for f in found.loaded.report.findings if f.plugin == subject.name and f.severity == "warning"]
    if warned:
        raise Unmet(f"it warns of its own work: {warned[0]}")


@rule("LK502", "The model runs.", "see that a forward pass gives finite numbers")
def forward(subject: Subject, scenario: Scenario) -> None:
    import torch

    model = loaded(subject, scenario).model
    try:
        logits = logits_of(model)
    except Exception as error:
        raise Unmet(f"a forward pass raises {raised(error)}") from error
    if not bool(torch.isfinite(logits).all()):
        raise Unmet("a forward pass gives numbers that aren't finite")


@rule("LK503", "A model that is to train trains.", "let gradients reach all that the plan trains")
def backward(subject: Subject, scenario: Scenario) -> None:
    passes = _trained(subject, scenario)
    if passes.failure:
        raise Unmet(f"a step of training raises {passes.failure}")
    if not passes.reached:
        raise Unmet(f"no gradient reaches any of the {passes.trained} parameters that train")
    if passes.left_out:
        of = f"{len(passes.left_out)} of {passes.parts}"
        raise Unmet(f"no gradient reaches {of} parts that train and ran: {', '.join(passes.left_out[:3])}")


@rule(
    "LK504",
    "What is saved loads again, the same.",
    "save all that the model is made of, under the names that loading reads; or say that it can't be saved (unsavable=…)",
)
def saves(subject: Subject, scenario: Scenario) -> None:
    import torch

    first = loaded(subject, scenario)
    if fails(forward, subject, scenario):
        raise NotApplicable("it doesn't run (LK502)")
    if told := false_facts(subject, scenario):
        raise NotApplicable(f"what it registers isn't true ({told})")
    if stated := _stated(first.plan):
        raise NotApplicable(f"it says so itself: {stated}")
    with tempfile.TemporaryDirectory() as folder:
        try:
            first.save_pretrained(folder)
        except Exception as error:
            raise Unmet(f"saving raises {type(error).__name__}: {error}") from error
        of_the_adapter = ("lora_", "peft_", "adapter")
        options = {k: v for k, v in scenario.options.items() if not k.startswith(of_the_adapter)}
        again = attempt(subject, scenario, options, Path(folder))
        if again.error is not None:
            raise Unmet(f"what was saved doesn't load again: {why_not(again.error)}") from again.error
        if not torch.equal(logits_of(first.model).nan_to_num(), logits_of(again.loaded.model).nan_to_num()):
            raise Unmet("the model that was saved and loaded again computes something else")


@rule(
    "LK505",
    "Loading with it leaves the process as it is.",
    "seed nothing, set nothing of torch's, and print nothing while a model is loaded and audited",
    since="1.1",
)
def process_unchanged(subject: Subject, scenario: Scenario) -> None:
    seen = attempt(subject, scenario).seen
    for hook, what in seen.changes:
        if (hook, what) not in subject.trace(scenario).seen.changes:  # LK305
            raise Unmet(f"{hook} changes {what}")
    for hook, what in seen.prints:
        if hook not in {h for h, _ in subject.trace(scenario).seen.prints}:  # LK309
            raise Unmet(f"{hook} prints {what!r} to standard output")


@rule(
    "LK506",
    "Activation checkpointing recomputes.",
    "run the layers that checkpointing wraps, as transformers' GradientCheckpointingLayer does",
    since="1.1",
)
def recomputes(subject: Subject, scenario: Scenario) -> None:
    if not loaded(subject, scenario).plan.preparation.gradient_checkpointing:
        raise NotApplicable("nothing is checkpointed in this scenario")
    passes = _trained(subject, scenario)
    if passes.reached and not passes.recomputed:
        raise Unmet("no layer runs again in the backward pass: every activation is kept")


@rule(
    "LK507",
    "Its estimate is what is loaded.",
    "estimate what your method makes of each weight: bytes of codes, and of scales and code books",
    since="1.1",
)
def estimate_holds(subject: Subject, scenario: Scenario) -> None:
    from loadkit.testing.quantized import estimate_fault

    _quantizes(subject, loaded(subject, scenario).plan)
    found = loaded(subject, scenario, unused=True)
    if fault := estimate_fault(found, subject.manager()):
        raise Unmet(fault)


@rule(
    "LK508",
    "Modules that are to stay as they are do.",
    "hand skip_modules on to the config that you build",
    since="1.1",
)
def skips(subject: Subject, scenario: Scenario) -> None:
    from loadkit.audit.model_access import is_packed

    found = loaded(subject, scenario)
    _quantizes(subject, found.plan)
    names = found.plan.quantization.skip_modules
    if not names:
        raise NotApplicable("no module is to stay as it is in this scenario")
    for name, parameter in base_of(found.model).named_parameters():
        module = name.rpartition(".")[0]
        if is_packed(parameter) and any(f".{each}." in f".{module}." for each in names):
            raise Unmet(f"{module} is quantized, and the plan leaves {', '.join(names)} as they are")


@rule(
    "LK509",
    "Its comparison tells other values apart.",
    "quantize the file's values again in loadkit_compare_tensor, and say what differs",
    since="1.1",
)
def compares(subject: Subject, scenario: Scenario) -> None:
    loaded(subject, scenario)
    nothing = "it compared no tensor with the files"
    if not attempt(subject, scenario).compared:
        raise NotApplicable(nothing)
    compared = [c for c in attempt(subject, scenario, unused=True).compared if not c.answer]
    if not compared:
        raise NotApplicable(nothing)
    hook = subject.hooks()["loadkit_compare_tensor"]
    for given, _ in compared:
        stored = given["stored"]
        for other in (stored.neg(), stored.flip(0) if stored.shape[0] > 1 else stored * 3, stored * 3):
            taken = {k: v for k, v in {**given, "stored": other}.items() if k in _parameters(hook)}
            with contained():
                answer = hook(**taken)
            if not answer and not bool((other == stored).all()):
                raise Unmet(
                    "loadkit_compare_tensor finds nothing where the file holds other values than the model"
                )


@rule(
    "LK510",
    "A finished model computes what it did before.",
    "state the tolerance that your kernel needs, or correct it: the largest difference as a share of the largest output",
    since="1.1",
)
def same_outputs(subject: Subject, scenario: Scenario) -> None:
    found = loaded(subject, scenario)
    finish = next((f for f in found.plan.finishes if f.plugin == subject.name), None)
    if finish is None:
        raise NotApplicable("it finishes nothing in this scenario")
    if fails(forward, subject, scenario):
        raise NotApplicable("it doesn't run (LK502)")
    plain = msgspec.structs.replace(
        found.plan, finishes=tuple(f for f in found.plan.finishes if f is not finish)
    )
    without = load_plan(subject, plain)
    ours, theirs = logits_of(found.model).float(), logits_of(without.model).float()
    share = float((ours - theirs).abs().max() / theirs.abs().max())
    if not share <= finish.tolerance:
        raise Unmet(f"the outputs are off by {share:.2g} of the largest, and it says {finish.tolerance:.2g}")


def _parameters(hook: Any) -> set[str]:
    import inspect

    return set(inspect.signature(hook).parameters)


def _quantizes(subject: Subject, plan: Any) -> None:
    chosen_by = next((d.plugin for d in plan.decisions if d.stage == "quantization"), "")
    if plan.quantization is None or plan.quantization.prequantized or chosen_by != subject.name:
        raise NotApplicable("it quantizes nothing in this scenario")


def _stated(plan: Any) -> str:
    """Why it can't be saved, as the plan says; "" where it says nothing."""
    return next((p.message for p in plan.warnings if p.code == "cant-be-saved"), "")


def _trained(subject: Subject, scenario: Scenario) -> Passes:
    """One step of training, taken once for all checks that ask."""
    found = loaded(subject, scenario)
    if not found.plan.preparation.training:
        raise NotApplicable("nothing trains in this scenario")
    kept: Passes | None = getattr(found, "_conformance_passes", None)
    if kept is None:
        if fails(forward, subject, scenario):
            raise NotApplicable("it doesn't run (LK502)")
        try:
            kept = train_once(found.model)
        except Exception as error:
            kept = Passes(failure=raised(error))
        found._conformance_passes = kept
    return kept
