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
    files_of,
    library_versions,
    proof_of,
    read_saved,
)
from loadkit.planning.pipeline import make_plan
from loadkit.schema.plans import CheckpointSummary, Plan
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
    """The manifest's plan, if it still holds here.

    Files are hashed and compared; the request is planned again, and its decisions compared. Versions of
    libraries that differ are told in a warning.

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
    soft = [d for d in found if d.what.startswith(("library ", "python", "machine", "plugin ", "because "))]
    hard = [d for d in found if d not in soft]
    worth_saying = [d for d in soft if not d.what.startswith("because ")]
    if hard and strict:
        raise ReplayError(manifest.plan.request.source, hard)
    if worth_saying or hard:
        lines = "; ".join(map(str, [*hard, *worth_saying]))
        warnings.warn(
            f"{manifest.plan.request.source!r} is loaded again, and differs: {lines}",
            ReplayWarning,
            stacklevel=4,
        )
    return manifest.plan


def _here(
    manifest: Manifest,
    token: Token,
    plugin_manager: PluginManager,
    progress: Progress | None,
) -> list[Difference]:
    """What differs between the manifest and what is here now."""
    say = progress or (lambda _: None)
    request = manifest.plan.request
    revision = {"revision": manifest.plan.checkpoint.commit} if manifest.plan.checkpoint.commit else {}
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
    now = msgspec.structs.replace(now, request=request, checkpoint=_same_revision(now, manifest.plan))
    files = {}
    for name, path in files_of(manifest.plan).items():
        say(f"hashing {name}")
        files[name] = proof_of(path)
    here = msgspec.structs.replace(manifest, plan=now, files=files, libraries=library_versions(manifest.plan))
    return differences(manifest, here)


def _same_revision(now: Plan, then: Plan) -> CheckpointSummary:
    """The checkpoint as it is now, under the revision that was asked for then: the branch may have moved."""
    return msgspec.structs.replace(now.checkpoint, revision=then.checkpoint.revision)
