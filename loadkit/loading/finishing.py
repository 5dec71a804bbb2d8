"""The last phase: what plugins do to the finished model, each as the plan says, measured and held to it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from loadkit.errors import Finding, LoadError, PluginError
from loadkit.hooks import hookspecs as hooks
from loadkit.hooks.manager import PluginManager
from loadkit.loading.patch_watch import Changed, Watch
from loadkit.schema.finishes import Finish, Finished
from loadkit.schema.plans import Plan
from loadkit.schema.request import Progress

__all__ = ["Outcome", "finish_model"]


class Outcome(NamedTuple):
    """The model, what each plugin did to it, and what of that shouldn't have been."""

    model: Any
    finished: tuple[Finished, ...] = ()
    findings: tuple[Finding, ...] = ()


def finish_model(
    plan: Plan,
    model: Any,
    manager: PluginManager,
    clock: Callable[[str], AbstractContextManager[Any]],
    say: Progress,
    *,
    full: bool,
) -> Outcome:
    """Let the plugins that the plan names finish the model, one after the other.

    Parameters:
        full: whether every value of the weights is held against what it was; otherwise a sample of each.

    Raises:
        LoadError: a plugin that the plan names isn't here.
        PluginError: a plugin raised, or gave something else than such a model.
    """
    finished: list[Finished] = []
    findings: list[Finding] = []
    for finish in plan.finishes:
        _refuse_absent(finish, manager)
        say(f"{finish.what} ({finish.plugin})")

        def opened(parameter: Any) -> tuple[Any, ...]:
            hook: Any = hooks.loadkit_open_parameter
            found = manager.first(hook, plan=plan, parameter=parameter)
            return () if found is None else (found.data, *found.constants)

        with clock("comparison"):
            kind, watch = type(model), Watch(model, opened, full=full)
        with clock(f"finishing by {finish.plugin}"):
            done = manager.ask(hooks.loadkit_finish_model, finish.plugin, plan=plan, model=model)
        if done is not None and type(done) is not kind:
            fault = f"it gave a {type(done).__name__} for a {kind.__name__}; a finish gives back the model that it got"
            raise PluginError(finish.plugin, fault, hook=hooks.loadkit_finish_model.__name__)
        model = model if done is None else done
        with clock("comparison"):
            changed = watch.changed(model)
        finished.append(Finished(plugin=finish.plugin, what=finish.what, modules=changed.modules))
        findings += _findings(finish, changed)
    return Outcome(model, tuple(finished), tuple(findings))


def _refuse_absent(finish: Finish, manager: PluginManager) -> None:
    active = {p.name: p for p in manager.plugins if p.state == "active"}
    if finish.plugin not in active or hooks.loadkit_finish_model.__name__ not in active[finish.plugin].hooks:
        raise LoadError(
            f"the plan says that {finish.plugin!r} finishes the model ({finish.what}), and that plugin takes no part here\n"
            "    fix: install or enable it (`loadkit plugins` shows which are there), or plan again without it"
        )


def _findings(finish: Finish, changed: Changed) -> list[Finding]:
    """What a patch did beside what it is for."""
    plugin, without = finish.plugin, f"tell its author, or go on without it: LOADKIT_DISABLE={finish.plugin}"

    def found(code: str, what: str, planned: str, effective: str) -> Finding:
        return Finding("finish", plugin, code, f"{finish.what}: {what}", planned, effective, without)

    few = 3
    findings = []
    if changed.weights:
        what = "; ".join(changed.weights[:few])
        findings.append(found("patched-weights", "it changed the weights", "the same weights", what))
    if changed.hooks:
        what = f"{len(changed.hooks)} modules without theirs, such as {changed.hooks[0]}"
        findings.append(found("patched-hooks", "hooks of modules are gone", "the same hooks", what))
    if changed.model:
        what = "; ".join(changed.model)
        findings.append(found("patched-model", "it changed the configs", "the same configs", what))
    if changed.elsewhere:
        what = ", ".join(changed.elsewhere[:few])
        said = "it changed what every model of this process shares, which was put back"
        findings.append(found("patched-elsewhere", said, "this model alone", what))
    if not (changed.modules or findings):
        findings.append(found("not-finished", "nothing of the model is otherwise", finish.what, "nothing"))
    return findings
