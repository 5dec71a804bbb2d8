"""Import what registers something with transformers that the plan has, right before the model is loaded."""

from __future__ import annotations

import importlib

from loadkit.errors import LoadError
from loadkit.facts.library.registrations import read_registrations
from loadkit.hooks.contained import Left, contained, raised
from loadkit.schema.plans import Plan

__all__ = ["import_registrations"]


def import_registrations(plan: Plan) -> None:
    """Import the modules that register the plan's attention.

    Raises:
        LoadError: one can't be imported, or registers nothing of that name.
    """
    chosen = plan.attn_implementation
    names = {chosen} if isinstance(chosen, str) else set(chosen.values())
    for each in read_registrations():
        if each.name not in names:
            continue
        try:
            with contained():
                importlib.import_module(each.module)
        except (Left, Exception) as error:
            raise _failed(str(each), each.name, f"importing that raises {raised(error)}") from error
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        if each.name not in ALL_ATTENTION_FUNCTIONS.valid_keys():
            raise _failed(str(each), each.name, "it was imported, and transformers doesn't know that name")


def _failed(by: str, name: str, what: str) -> LoadError:
    return LoadError(
        f"attention {name!r} is {by}, and {what}\n    fix: update or uninstall it, or leave attn_implementation out"
    )
