"""Classes that aren't transformers': those that a plugin registered, and the checkpoint's own."""

from __future__ import annotations

from loadkit import Architecture, Claim, Context, ModelClass, Strength
from loadkit_plugins.architecture.tasks import TASKS, asked_task

__all__ = ["registered", "remote"]


def registered(context: Context, family: Architecture) -> Claim[ModelClass] | None:
    """A registered family's class for the task; None where it has none."""
    wanted = asked_task(context)
    task = next((t for t in ([wanted] if wanted else TASKS) if t in family.models), None)
    if task is None:
        return None
    value = ModelClass(
        task=task,
        auto_class="",
        model_class=family.models[task],
        implementation="plugin",
        config_class=family.config,
    )
    because = f"a plugin registered model type {family.model_type!r}"
    because += ", preferred to transformers' own" if family.preferred else ""
    return Claim(value=value, because=because, strength=Strength.FALLBACK)


def remote(context: Context) -> Claim[ModelClass] | None:
    """The checkpoint's own class, which runs its code: only ever reached with consent."""
    auto_map, wanted = context.checkpoint.auto_map, asked_task(context)
    for task in [wanted] if wanted else TASKS:
        reference = auto_map.get(TASKS[task])
        if isinstance(reference, str):
            value = ModelClass(
                task=task,
                auto_class=TASKS[task],
                model_class=reference.split("--")[-1],
                implementation="remote code",
                code=context.beside.code,
            )
            because = (
                f"transformers has no {context.checkpoint.model_type!r}; "
                f"the checkpoint brings {reference}, and trust_remote_code was given"
            )
            return Claim(value=value, because=because, strength=Strength.FALLBACK)
    return None
