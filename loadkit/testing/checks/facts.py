"""LK4: what it registers of an architecture is true."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import partial
from typing import Any

import msgspec

from loadkit.audit.model_access import base_of
from loadkit.errors import PlanError
from loadkit.hooks.contained import raised
from loadkit.planning.pipeline import make_plan
from loadkit.schema.values import Architecture, Supported, Unsupported
from loadkit.testing.kit import NotApplicable, Unmet, check, fails
from loadkit.testing.loads import attempt, folder, why_not
from loadkit.testing.scenarios import Scenario
from loadkit.testing.subjects import Subject
from loadkit.testing.training import fused_calls
from loadkit.text.suggest import did_you_mean

CONVERSATION = (
    {"role": "user", "content": "What is a hook?"},
    {"role": "assistant", "content": "A place where others decide."},
    {"role": "user", "content": "And a claim?"},
)
"""What a chat template is tried with."""

__all__ = ["false_facts", "registered"]

rule = partial(check, "facts")


@rule(
    "LK401",
    "What an architecture names can be imported.",
    'write "module:Class", and see that both are there',
)
def references(subject: Subject, scenario: Scenario) -> None:
    for architecture in registered(subject):
        for reference in (architecture.config, architecture.processing_class, *architecture.models.values()):
            if reference:
                _imported(architecture.model_type, reference)


@rule(
    "LK402", "The config class round-trips.", "give every field a default, and keep model_type on the class"
)
def config_round_trips(subject: Subject, scenario: Scenario) -> None:
    own = [a for a in registered(subject) if a.config]
    if not own:
        raise NotApplicable("it registers no config class")
    for architecture in own:
        config_class = _imported(architecture.model_type, architecture.config)
        found = getattr(config_class, "model_type", "")
        if found != architecture.model_type:
            raise Unmet(
                f"{architecture.config} is of model type {found!r}, and is registered for {architecture.model_type!r}"
            )
        try:
            first = config_class()
            again = config_class.from_dict(first.to_dict())
        except Exception as error:
            raise Unmet(
                f"{architecture.config} can't be made from its own values: {type(error).__name__}: {error}"
            ) from error
        if again.to_dict() != first.to_dict():
            raise Unmet(f"{architecture.config} isn't the same after a round trip through a dictionary")


@rule(
    "LK403",
    "What it says of attention holds.",
    "claim Supported for what runs, Unsupported with a reason for what doesn't",
    scenarios="loaded",
)
def attention(subject: Subject, scenario: Scenario) -> None:
    architecture = _concerned(subject, scenario)
    said = architecture.attention
    if not said:
        raise NotApplicable("it says nothing of the attention of this model type")
    if {"eager", "sdpa"} <= said.keys() and all(isinstance(s, Unsupported) for s in said.values()):
        raise Unmet(
            f"every attention of {architecture.model_type} is said to be unsupported, so none can be loaded"
        )
    try:
        plan = _plan(subject, scenario, {})
    except PlanError as error:
        raise NotApplicable("it can't be planned (LK501)") from error
    if architecture.models and plan.model_class.model_class not in architecture.models.values():
        raise NotApplicable(
            "what it says of attention is of its own classes, and others serve in this scenario"
        )
    failing: dict[str, str] = {}
    for name, support in said.items():
        if isinstance(support, Unsupported) and _planned(subject, scenario, name):
            raise Unmet(
                f"{name} is said to be unsupported ({support.reason}), and is planned when it is asked for"
            )
        if isinstance(support, Supported) and "flash" not in name:
            try:
                failing[name] = _runs(subject, scenario, name)
            except PlanError as error:
                problem = next(p for p in error.problems if p.severity == "error")
                if problem.stage == "attention":
                    raise Unmet(
                        f"{name} is said to be supported, and asking for it is refused: {problem.message}"
                    ) from error
                raise NotApplicable("it can't be planned (LK501)") from error
    for name, fault in failing.items():
        about = any(word in fault for word in (name, "attn", "attention"))
        if fault and (about or not all(failing.values())):
            raise Unmet(f"{name} is said to be supported, and {fault}")


@rule(
    "LK404",
    "The chat template that it registers renders.",
    "try it on a short conversation; what the texts say has to be in the result",
    since="1.1",
)
def template(subject: Subject, scenario: Scenario) -> None:
    own = [a for a in registered(subject) if a.chat_template]
    if not own:
        raise NotApplicable("it registers no chat template")
    from transformers.utils.chat_template_utils import render_jinja_template

    for architecture in own:
        what = f"the chat template of {architecture.model_type!r}"
        try:
            (found,), _ = render_jinja_template(
                conversations=[list(CONVERSATION)],
                chat_template=architecture.chat_template,
                add_generation_prompt=True,
                bos_token="<s>",
                eos_token="</s>",
                pad_token="<pad>",
                unk_token="<unk>",
            )
        except Exception as error:
            raise Unmet(f"{what} doesn't render: {type(error).__name__}: {error}") from error
        lost = [turn["content"] for turn in CONVERSATION if turn["content"] not in found]
        if lost:
            raise Unmet(f"{what} loses what is said: {lost[0]!r} isn't in {found[:80]!r}")


@rule(
    "LK405",
    "The modules that it names are there.",
    "name modules as the model's own paths have them: whole paths, or their last parts",
    since="1.1",
    scenarios="loaded",
)
def named_modules(subject: Subject, scenario: Scenario) -> None:
    architecture = _concerned(subject, scenario)
    named = {
        "lora_target_modules": architecture.lora_target_modules,
        "skip_modules": architecture.skip_modules,
    }
    if not any(named.values()):
        raise NotApplicable("it names no modules of this model type")
    there = _modules(subject, scenario)
    for what, names in named.items():
        for name in names:
            if name not in ("all-linear", "lm_head") and not any(f".{name}." in f".{m}." for m in there):
                nearest = did_you_mean(name, sorted({m.rpartition(".")[2] for m in there}))
                raise Unmet(
                    f"{what} has {name!r}, and no module of {architecture.model_type} is called so{nearest}"
                )


def false_facts(subject: Subject, scenario: Scenario) -> str:
    """The check of this group by which a load was bound to fail; "" where there is none."""
    static = {
        "LK401": references,
        "LK402": config_round_trips,
        "LK403": attention,
        "LK404": template,
        "LK405": named_modules,
    }
    return next((code for code, one in static.items() if fails(one, subject, scenario)), "")


def _concerned(subject: Subject, scenario: Scenario) -> Architecture:
    """What it registers for the model type of a scenario's checkpoint."""
    own = {a.model_type: a for a in registered(subject)}
    try:
        references(subject, scenario)
    except Unmet as missing:
        raise NotApplicable("what it names can't be imported (LK401)") from missing
    read = msgspec.json.decode((folder(scenario) / "config.json").read_bytes(), type=dict[str, Any])
    architecture = own.get(str(read.get("model_type")))
    if architecture is None:
        raise NotApplicable("it registers nothing for this model type")
    return architecture


def _plan(subject: Subject, scenario: Scenario, more: Mapping[str, Any]) -> Any:
    manager = subject.manager()
    options = {**scenario.options, **more}
    return make_plan(folder(scenario), scenario.profile or None, plugin_manager=manager, **options)


def _planned(subject: Subject, scenario: Scenario, name: str) -> bool:
    try:
        _plan(subject, scenario, {"attn_implementation": name})
    except PlanError:
        return False
    return True


def _runs(subject: Subject, scenario: Scenario, name: str) -> str:
    """What is wrong with a model that is loaded with an attention; "" where that is what runs."""
    asked = scenario.options | {"attn_implementation": name}
    found = attempt(subject, scenario, asked)
    if isinstance(found.error, PlanError):
        raise found.error
    if found.error is not None:
        return f"loading with it fails: {why_not(found.error)}"
    effective = found.loaded.model.config._attn_implementation
    if effective != name:
        return f"{effective} runs when it is asked for"
    if name in ("eager", "sdpa"):
        try:
            calls = fused_calls(found.loaded.model)
        except Exception as error:
            return f"a forward pass raises {raised(error)}"
        if name == "sdpa" and not calls:
            return "it is never called when the model runs"
        if name == "eager" and calls:
            return "sdpa is called when the model runs with it"
    return ""


def _modules(subject: Subject, scenario: Scenario) -> set[str]:
    """The modules of a scenario's checkpoint: those that its files have tensors of, and what was loaded."""
    from safetensors import safe_open

    names: set[str] = set()
    for path in folder(scenario).glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            names |= {key.rpartition(".")[0] for key in file.keys()}  # noqa: SIM118
    found = attempt(subject, scenario)
    if found.loaded is not None:
        names |= {name for name, _ in base_of(found.loaded.model).named_modules()}
    return names


def registered(subject: Subject) -> tuple[Architecture, ...]:
    """The architectures of the plugin."""
    if "loadkit_architectures" not in subject.hooks():
        raise NotApplicable("it registers no architecture")
    subject.manager()
    return subject.provided().architectures


def _imported(model_type: str, reference: str) -> Any:
    module, _, name = reference.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise Unmet(f"{reference!r} of {model_type!r} can't be imported: {error}") from error
