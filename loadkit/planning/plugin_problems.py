"""What a plan says of the plugins that made it: which take no part, and what they state of the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from loadkit.errors import Problem
from loadkit.facts.context import Context
from loadkit.hooks.manager import PluginManager
from loadkit.schema.claims import Decision
from loadkit.schema.values import Quantization

__all__ = ["broken_plugins", "stated_facts"]


def broken_plugins(manager: PluginManager) -> Iterator[Problem]:
    """A warning for each plugin that is installed and can't take part: it may be one that refuses plans."""
    for info in manager.plugins:
        if info.state == "broken":
            home = f" (of {info.distribution} {info.version})" if info.distribution else ""
            name = info.distribution if " (" in info.name else info.name
            yield Problem(
                "plugins",
                info.name,
                "broken-plugin",
                f"plugin {info.name!r}{home} is installed and takes no part: {info.reason}",
                f"update or uninstall {info.distribution or 'it'}; LOADKIT_DISABLE={name} leaves it out on purpose, "
                "and with LOADKIT_STRICT=1 nothing is planned without it",
                severity="warning",
            )


def stated_facts(decisions: Iterable[Decision], context: Context) -> Iterator[Problem]:
    """What plugins state of what was decided: that it can't be saved, and why."""
    reasons: list[tuple[str, str, str]] = []
    for decision in decisions:
        value = decision.value
        if isinstance(value, Quantization) and value.unsavable is not msgspec.UNSET and value.unsavable:
            reasons.append((decision.stage, decision.plugin, value.unsavable))
        if decision.stage == "architecture" and context.registered is not None:
            served = not context.registered.models or value.model_class in context.registered.models.values()
            if context.registered.unsavable and served:
                reasons.append((decision.stage, decision.plugin, context.registered.unsavable))
    for stage, plugin, reason in reasons:
        yield Problem(
            stage,
            plugin,
            "cant-be-saved",
            f"the model can't be saved: {reason}",
            "save the adapter alone, or load another way to save the whole",
            severity="note",
        )
