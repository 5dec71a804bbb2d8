"""LK2: its functions are hooks as loadkit calls them."""

from __future__ import annotations

import ast
import inspect
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from loadkit.errors import Problem
from loadkit.facts.machine.named_machines import NamedAccelerator
from loadkit.hooks import hookspecs
from loadkit.hooks.contained import Left, contained, raised, shown
from loadkit.hooks.discovery import OWN
from loadkit.hooks.fitting import WRAPPABLE
from loadkit.hooks.manager import PluginManager
from loadkit.hooks.provisions import Provided, refuse_taken
from loadkit.request.options import Option
from loadkit.request.profiles import Profile
from loadkit.request.recipes.key_tables import Dialect
from loadkit.schema.claims import Claim
from loadkit.schema.finishes import Finish
from loadkit.schema.memory import Optimizer
from loadkit.schema.stages import stage_named
from loadkit.schema.values import Architecture
from loadkit.testing.kit import NotApplicable, Unmet, check, fails
from loadkit.testing.own_scenarios import Tried, everywhere, own_scenarios
from loadkit.testing.scenarios import Scenario
from loadkit.testing.subjects import Answer, Subject, listed
from loadkit.text.suggest import did_you_mean

__all__ = ["answers"]

KNOWN = tuple(name for name in vars(hookspecs) if name.startswith("loadkit_"))
CHOOSE = "loadkit_choose_"
STRANGE = "x-loadkit-nobodys://place/model"
"""An address of a scheme that no plugin has."""

KINDS: Mapping[str, type] = {
    "loadkit_options": Option,
    "loadkit_profiles": Profile,
    "loadkit_architectures": Architecture,
    "loadkit_optimizers": Optimizer,
    "loadkit_accelerators": NamedAccelerator,
    "loadkit_recipe_dialects": Dialect,
}

rule = partial(check, "contract")


@rule(
    "LK201",
    "Every function that is called like a hook is one.",
    "correct the name, and mark it with @loadkit.hookimpl",
)
def known_hooks(subject: Subject, scenario: Scenario) -> None:
    for name, function in _functions(subject):
        if name not in KNOWN:
            raise Unmet(f"{name} isn't a hook of loadkit{did_you_mean(name, KNOWN)}")
        if _marker(function) is None:
            raise Unmet(f"{name} isn't marked with @loadkit.hookimpl, so it is never called")


@rule(
    "LK202",
    "Hooks have annotations.",
    "annotate parameters and return value as the hook's specification does",
)
def annotated(subject: Subject, scenario: Scenario) -> None:
    for name, function in _functions(subject):
        signature = inspect.signature(function)
        bare = [p.name for p in signature.parameters.values() if p.annotation is p.empty and p.name != "self"]
        if bare or signature.return_annotation is signature.empty:
            raise Unmet(f"{name} has no annotation for {', '.join(bare) or 'what it returns'}")


@rule(
    "LK203",
    "Only loading is wrapped.",
    "answer the decision with a claim of your own instead of changing others'",
)
def no_wrappers(subject: Subject, scenario: Scenario) -> None:
    for name, function in _functions(subject):
        marker = _marker(function) or {}
        if name != WRAPPABLE and (marker.get("wrapper") or marker.get("hookwrapper")):
            raise Unmet(f"{name} wraps what other plugins say")


@rule("LK204", "Hooks have no default arguments.", "take the parameters that you need, without defaults")
def no_defaults(subject: Subject, scenario: Scenario) -> None:
    for name, function in _functions(subject):
        given = [p.name for p in inspect.signature(function).parameters.values() if p.default is not p.empty]
        if given:
            raise Unmet(
                f"{name} has a default for {', '.join(given)}: pluggy never hands such a parameter over"
            )


@rule(
    "LK205",
    "Hooks return what their specification says.",
    "return a value of that type, or None for no opinion",
    scenarios="planned",
)
def right_types(subject: Subject, scenario: Scenario) -> None:
    trace = subject.trace(scenario)
    for answer in trace.answers:
        if fault := _type_fault(answer):
            raise Unmet(f"{answer.hook} {fault}")
    if trace.failure and not isinstance(scenario, Tried):
        raise Unmet(trace.failure)


@rule("LK206", "What it declares is of the right type.", "return Options, Profiles and Architectures")
def declarations(subject: Subject, scenario: Scenario) -> None:
    declaring = [(name, function) for name, function in _functions(subject) if name in KINDS]
    if not declaring or not subject.unregistered:
        return  # what it declares was checked when it was registered; asked again it might say something else
    if subject.hung:
        raise NotApplicable(subject.unregistered)
    for name, function in declaring:
        kind = KINDS[name]
        try:
            with contained():
                wrong = [item for item in function() or () if not isinstance(item, kind)]
        except Left as error:
            raise Unmet(f"{name}: {error}") from error
        except Exception as error:
            raise Unmet(f"{name} raises {raised(error)}") from error
        if wrong:
            raise Unmet(f"{name} gives {shown(wrong[0])}; it gives {kind.__name__} values")


@rule(
    "LK207",
    "Hooks take parameters of their specification.",
    "take those that the hook's specification has, under their names",
    since="1.1",
)
def known_parameters(subject: Subject, scenario: Scenario) -> None:
    for name, function in _functions(subject):
        spec = getattr(hookspecs, hookspecs.RENAMED.get(name, name), None)
        if spec is None or _marker(function) is None:
            continue
        has = {*inspect.signature(spec).parameters, *hookspecs.RENAMED_PARAMETERS.get(name, {}), "self"}
        for given in inspect.signature(function).parameters.values():
            bound = given.kind in (given.POSITIONAL_ONLY, given.POSITIONAL_OR_KEYWORD)
            if bound and given.default is given.empty and given.name not in has:
                words = ", ".join(sorted(has - {"self"})) or "no parameters"
                raise Unmet(
                    f"{name} takes {given.name}{did_you_mean(given.name, sorted(has))}; the hook has {words}"
                )


@rule(
    "LK208",
    "It can be registered.",
    "do what the reason says: `loadkit plugins` shows it too",
    since="1.1",
)
def registers(subject: Subject, scenario: Scenario) -> None:
    others = (known_hooks, no_wrappers, declarations, known_parameters, defined_once, own_options)
    if any(fails(other, subject, scenario) for other in others):
        raise NotApplicable("another check of this group says why it can't")
    if subject.unfit or subject.plugin is None:
        raise NotApplicable("it can't be imported (LK101, LK103, LK107)")
    if reason := subject.unregistered:
        if subject.hung:
            raise NotApplicable(reason)
        raise Unmet(f"loadkit doesn't take it: {reason}")


@rule(
    "LK209",
    "Every hook is defined once.",
    "join the two functions: Python keeps the last of one name",
    since="1.1",
)
def defined_once(subject: Subject, scenario: Scenario) -> None:
    hooks = _functions(subject)
    source = inspect.getsourcefile(subject.plugin) if inspect.ismodule(subject.plugin) else None
    if not hooks or source is None or not os.path.isfile(source):
        raise NotApplicable("it has no file of its own")
    tree = ast.parse(Path(source).read_bytes())
    for body in (tree.body, *(node.body for node in tree.body if isinstance(node, ast.ClassDef))):
        names = Counter(n.name for n in body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
        for name, count in names.items():
            if count > 1 and name.startswith("loadkit_"):
                raise Unmet(
                    f"{name} is defined {count} times in {os.path.basename(source)}: only the last counts"
                )


@rule(
    "LK210",
    "Its options and profiles are its own.",
    "choose other names, such as ones that begin with the plugin's",
    since="1.1",
)
def own_options(subject: Subject, scenario: Scenario) -> None:
    if not {"loadkit_options", "loadkit_profiles"} & {name for name, _ in _functions(subject)}:
        raise NotApplicable("it declares no options and no profiles")
    if subject.entry is not None and subject.entry.dist is not None and subject.entry.dist.name == OWN:
        raise NotApplicable("it comes with loadkit itself")
    provided = subject.provided()
    if subject.unregistered and not subject.hung:  # it may be for what is to be found here
        provided = Provided(_declared(subject, Option), _declared(subject, Profile), ())
    ours = PluginManager(environ={"LOADKIT_PLUGINS": OWN})
    try:
        refuse_taken(provided, ours.provided)
    except TypeError as taken:
        raise Unmet(str(taken)) from taken
    for profile in provided.profiles:
        if profile.name in ours.profiles.found:
            owner, _ = ours.profiles.found[profile.name]
            raise Unmet(
                f"it brings a profile {profile.name!r}, as {owner!r} does: whoever asks for that is refused"
            )


@rule(
    "LK211",
    "Its decisions are made in some scenario.",
    "give a scenario that reaches them: its own model type, options or profile (--config, --option, --profile)",
    since="1.1",
)
def decides(subject: Subject, scenario: Scenario) -> str:
    hooks = sorted(n for n, f in _functions(subject) if n.startswith(CHOOSE) and _marker(f) is not None)
    if not hooks:
        raise NotApplicable("it has no hook that decides")
    scenarios = everywhere(subject)
    for each in scenarios:
        subject.trace(each)
    never = [name for name in hooks if name not in subject.answering]
    said = f"never answered in {len(scenarios)} scenarios: {', '.join(never)}" if never else ""
    if len(never) < len(hooks):
        return said
    if any(t.failure for t in subject.traces):
        raise NotApplicable("it fails as it is (LK205, LK601)")
    if not subject.asked:
        raise NotApplicable(f"{said}; no scenario of yours asks for it")
    raise Unmet(said)


@rule(
    "LK212",
    "Its profiles can be asked for.",
    "name options and profiles that there are, with values that they can have",
    since="1.1",
)
def whole_profiles(subject: Subject, scenario: Scenario) -> None:
    profiles = {profile.name for profile in subject.provided().profiles}
    if not profiles:
        raise NotApplicable("it declares no profiles")
    if fails(own_options, subject, scenario):
        raise NotApplicable("they aren't its own (LK210)")
    for each in own_scenarios(subject):
        if each.profile in profiles and (said := subject.trace(each).unasked):
            raise Unmet(said[0])


@rule(
    "LK213",
    "It opens no address that isn't its own.",
    "return None from loadkit_open_source unless the scheme is yours: the first plugin that answers has it",
    since="1.1",
)
def own_addresses(subject: Subject, scenario: Scenario) -> None:
    function = dict(_functions(subject)).get("loadkit_open_source")
    if function is None or _marker(function) is None:
        raise NotApplicable("it brings no checkpoints from elsewhere")
    given = {"reference": STRANGE, "revision": ""}
    taken = inspect.signature(function).parameters
    if not set(taken) <= set(given):
        raise NotApplicable("it asks for parameters that there aren't (LK207)")
    try:
        with contained():
            answer = function(**{name: given[name] for name in taken})
    except Exception as error:
        said = str(error) if isinstance(error, Left) else f"it raised {raised(error)}"
        raise Unmet(f"asked for {STRANGE}, which nobody has, {said}") from error
    if answer is not None:
        raise Unmet(f"asked for {STRANGE}, which nobody has, it answered {shown(answer)}")


def answers(subject: Subject, scenario: Scenario) -> list[Answer]:
    """What the plugin answered while a scenario was planned, whether or not the plan could be made."""
    trace = subject.trace(scenario)
    if trace.failure and not trace.answers:
        raise NotApplicable("it fails as it is (LK205, LK601)")
    return trace.answers


def _declared(subject: Subject, kind: type[Any]) -> tuple[Any, ...]:
    """What one of its hooks gives, asked directly."""
    hook = next(name for name, each in KINDS.items() if each is kind)
    function = subject.hooks().get(hook)
    if function is None:
        return ()
    with suppress(Exception), contained():
        return tuple(item for item in function() or () if isinstance(item, kind))
    return ()


def _functions(subject: Subject) -> Iterable[tuple[str, Callable[..., Any]]]:
    if subject.plugin is None:
        raise NotApplicable("it can't be imported (LK101)")
    return subject.hooks().items()


def _marker(function: Callable[..., Any]) -> Mapping[str, Any] | None:
    """What pluggy's marker left on a function."""
    found = getattr(function, f"{hookspecs.PROJECT}_impl", None)
    return found if isinstance(found, Mapping) else None


def _type_fault(answer: Answer) -> str:
    """What is wrong with the type of an answer; "" where nothing is."""
    if answer.hook.startswith(CHOOSE):
        stage = stage_named(answer.hook.removeprefix(CHOOSE))
        assert stage is not None
        for given in listed(answer.value):
            if not isinstance(given, Claim | Problem):
                return f"returned {shown(given)}; it returns a Claim, a Problem, several of them, or None"
            if isinstance(given, Claim):
                try:
                    msgspec.convert(msgspec.to_builtins(given.value), stage.type)
                except (msgspec.ValidationError, TypeError) as error:
                    return f"claims {shown(given.value)}, which isn't of the stage's type ({error})"
    elif answer.hook == "loadkit_check_plan":
        for given in listed(answer.value):
            if not isinstance(given, Problem):
                return f"returned {shown(given)}; it returns Problems"
    elif answer.hook == "loadkit_announce_finish":
        if not isinstance(answer.value, Finish):
            return f"returned {shown(answer.value)}; it returns a Finish, or None"
    elif answer.hook == "loadkit_contribute_kwargs":
        if not isinstance(answer.value, Mapping):
            return f"returned {shown(answer.value)}; it returns a mapping of keyword to claim"
        for key, value in answer.value.items():
            if not all(isinstance(claim, Claim) for claim in listed(value)):
                return f"gives {key!r} {shown(value)}, which isn't a Claim"
    return ""
