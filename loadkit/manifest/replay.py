"""Load again what a manifest says, or say what isn't the same any more."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence

import msgspec

from loadkit.errors import LoadkitError, PlanError
from loadkit.hooks.manager import PluginManager
from loadkit.manifest.manifest import (
    Difference,
    Manifest,
    differences,
    library_versions,
    proofs_of,
    read_saved,
)
from loadkit.planning.pipeline import make_plan
from loadkit.schema.plans import Plan
from loadkit.schema.request import Progress, Token

__all__ = ["ReplayError", "ReplayWarning", "plan_of"]


class ReplayError(LoadkitError):
    """A load that can't be repeated as it was.

    Parameters:
        source: what was loaded.
        differences: everything that differs, in files and decisions.
    """

    def __init__(self, source: str, differences: Sequence[Difference]) -> None:
        self.source = source
        self.differences = tuple(differences)
        lines = [f"  - {d}" for d in self.differences]
        count = f"{len(lines)} difference{'s' if len(lines) != 1 else ''}"
        head = f"{source!r} can't be loaded as it was: {count} (strict=False loads what the manifest says all the same)"
        super().__init__("\n".join([head, *lines]))


class ReplayWarning(UserWarning):
    """What differs and doesn't stop a replay: versions of libraries, the machine."""


def plan_of(
    manifest: Manifest | str | os.PathLike[str],
    *,
    strict: bool,
    token: Token,
    plugin_manager: PluginManager,
    progress: Progress | None,
) -> Plan:
    """The manifest's plan, if it still holds: files are hashed, the request is planned again, and compared.

    Raises:
        ReplayError: files or decisions differ, and `strict`.
        LoadkitError: the file isn't a manifest.
    """
    if not isinstance(manifest, Manifest):
        saved = read_saved(os.fspath(manifest))
        if isinstance(saved, Plan):
            raise LoadkitError(
                f"{os.fspath(manifest)!r} holds a plan, not a manifest: load it with load(Plan.from_json(…)), or "
                "write a manifest with loaded.manifest()"
            )
        manifest = saved
    found = _here(manifest, token, plugin_manager, progress)
    source = manifest.plan.request.source
    soft = [d for d in found if d.what.startswith(("library ", "python", "machine", "plugin ", "because "))]
    hard = [d for d in found if d not in soft]
    if hard and strict:
        raise ReplayError(source, hard)
    worth_saying = [*hard, *(d for d in soft if not d.what.startswith("because "))]
    if worth_saying:
        lines = "; ".join(map(str, worth_saying))
        warnings.warn(f"{source!r} is loaded again, and differs: {lines}", ReplayWarning, stacklevel=4)
    return manifest.plan


def _here(
    manifest: Manifest, token: Token, plugin_manager: PluginManager, progress: Progress | None
) -> list[Difference]:
    """What differs between the manifest and what is here now."""
    then, request = manifest.plan, manifest.plan.request
    revision = {"revision": then.checkpoint.commit} if then.checkpoint.commit else {}
    options = {name: asked.value for name, asked in request.options.items() if asked.demanded}
    try:
        now = make_plan(
            request.source, request.profile or None, recipe=request.recipe or None, token=token, plugin_manager=plugin_manager,
            progress=progress, **{**options, **revision},
        )  # fmt: skip
    except PlanError as error:
        return [
            Difference(what=f"plan: {p.code}", first="none", second=p.message)
            for p in error.problems
            if p.severity == "error"
        ]
    # Under the revision that was asked for then: the branch may have moved.
    checkpoint = msgspec.structs.replace(now.checkpoint, revision=then.checkpoint.revision)
    here = msgspec.structs.replace(
        manifest,
        plan=msgspec.structs.replace(now, request=request, checkpoint=checkpoint),
        files=proofs_of(then, progress),
        libraries=library_versions(then),
    )
    return differences(manifest, here)
