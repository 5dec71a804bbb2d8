"""From what the user asked for to the checkpoint as a fact, with every problem on the way."""

from __future__ import annotations

import os
from typing import Any

import msgspec

from loadkit.errors import Problem
from loadkit.facts.checkpoint.adapters import (
    adapter_of_adapter,
    base_path,
    base_unreadable,
    has_adapter,
    is_adapter,
    no_base,
    not_an_adapter,
    read_adapter,
)
from loadkit.facts.checkpoint.checkpoint import AdapterFacts, Checkpoint, File
from loadkit.facts.checkpoint.config_files import read_configs
from loadkit.facts.checkpoint.folder import looks_like_path
from loadkit.facts.checkpoint.missing_files import no_config
from loadkit.facts.checkpoint.open_source import Access, open_place
from loadkit.facts.checkpoint.source import Place, checkpoint_problem
from loadkit.facts.checkpoint.weight_files import read_weights
from loadkit.schema.request import Progress, Token

__all__ = ["read_checkpoint"]

_WITHOUT_REVISION = frozenset({"no-such-revision", "offline-not-cached"})


def read_checkpoint(
    source: str | os.PathLike[str],
    *,
    revision: str = "",
    adapter_revision: str = "",
    token: Token = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    allow_pickle: bool = False,
    progress: Progress | None = None,
) -> tuple[Checkpoint, tuple[Problem, ...]]:
    """Read what a checkpoint's small files and the headers of its weight files say. Weights are never downloaded.

    An existing folder is a folder; anything else that has the form of a Hub id is asked for on the Hub.

    A source is an adapter where it has an adapter_config.json, unless it is a folder that also holds a whole model
    (an embedded adapter). The checkpoint then tells the base that the config names, and `adapter` the source itself.
    A base path is looked up from the current directory, as transformers does, then from the adapter's folder.

    Parameters:
        source: a folder, a Hub id, or either of an adapter.
        revision: branch, tag or commit of the model; for an adapter that of its base, which otherwise is the
            `revision` in adapter_config.json, if any. Folders have none but "main".
        adapter_revision: branch, tag or commit of the adapter's repository, where the source is an adapter.
        token: as huggingface_hub takes it.
        cache_dir: the Hub cache; huggingface_hub's own by default.
        local_files_only: use what is cached, don't ask the Hub.
        allow_pickle: whether pickled weights are no problem.
        progress: called with a short sentence before something that takes long.

    Returns:
        The checkpoint as far as it could be read, and every problem found; without an error among them it is whole.
    """
    access = Access(token, cache_dir, local_files_only, progress)
    reader = _Reader(source, access, allow_pickle=allow_pickle)
    checkpoint = reader.checkpoint(revision, adapter_revision)
    # One cause may stop several files; equal problems are told once.
    return checkpoint, tuple(dict.fromkeys(reader.problems))


class _Reader:
    """One reading of a checkpoint, and the problems it found."""

    def __init__(self, source: str | os.PathLike[str], access: Access, *, allow_pickle: bool) -> None:
        self.source = source
        self.name = os.fspath(source)
        self.access = access
        self.allow_pickle = allow_pickle
        self.problems: list[Problem] = []

    def checkpoint(self, revision: str, adapter_revision: str) -> Checkpoint:
        """Read the source, and its base where it is an adapter."""
        place, base_revision, problems = self.find(revision, adapter_revision)
        self.problems += problems
        if place is None:
            return Checkpoint(source=self.name, revision=revision, **_where(self.source))
        if has_adapter(place):
            self.refuse_revision(place, "adapter_revision", adapter_revision)
            adapter, problems = read_adapter(place, self.name, allow_pickle=self.allow_pickle)
            self.problems += problems
            if is_adapter(place):
                return self.base(place, adapter, base_revision)
            return self.contents(place, revision, adapter)
        return self.contents(place, revision, None)

    def find(self, revision: str, adapter_revision: str) -> tuple[Place | None, str, list[Problem]]:
        """The place that the source names, and the revision wanted of its base if that is an adapter.

        Whether the source is an adapter, and which of the two revisions is its own, shows when it has been opened.
        """
        place, problems = self.open(self.source, adapter_revision or revision)
        if adapter_revision:
            if place is None or has_adapter(place):
                return place, revision, problems
            place, problems = self.open(self.source, revision)
            return place, "", [*problems, *([not_an_adapter(place, adapter_revision)] if place else [])]
        doubtful = is_adapter(place) if place else any(p.code in _WITHOUT_REVISION for p in problems)
        if revision and doubtful:
            own, found = self.open(self.source, "")
            if own is not None and is_adapter(own):
                return own, revision, found
        return place, "", problems

    def open(self, source: str | os.PathLike[str], revision: str) -> tuple[Place | None, list[Problem]]:
        """Find the folder or repository that a source names."""
        return open_place(source, revision, self.access)

    def contents(self, place: Place, revision: str, adapter: AdapterFacts | None) -> Checkpoint:
        """Read a model's files. `revision` is what the user demands of it."""
        self.refuse_revision(place, "revision", revision)
        configs, problems = read_configs(place)
        self.problems += problems
        weights, problems = read_weights(
            place, configs.config, allow_pickle=self.allow_pickle, progress=self.access.progress
        )
        if place.size("config.json") is None:
            self.problems.append(place.absent(["config.json"], no_config(place)))
            # What it is instead of a checkpoint has just been told.
            problems = [p for p in problems if p.code != "no-weights"]
        self.problems += problems
        return Checkpoint(
            source=self.name,
            kind=place.kind,
            location=place.location,
            revision=place.revision,
            commit=place.commit,
            files=tuple(File(name=name, size=size) for name, size in place.sizes.items()),
            adapter=adapter,
            config=configs.config,
            generation_config=configs.generation_config,
            processing=configs.processing,
            **msgspec.structs.asdict(weights),
        )

    def base(self, place: Place, adapter: AdapterFacts, revision: str) -> Checkpoint:
        """Read the model that an adapter was made for."""
        named = adapter.config.get("base_model_name_or_path")
        if not isinstance(named, str) or not named:
            if adapter.config:  # otherwise it couldn't be read, which has been told
                self.problems.append(no_base(place))
            return Checkpoint(source=self.name, revision=revision, adapter=adapter)
        theirs = adapter.config.get("revision")
        base, problems = self.open(
            base_path(place, named), revision or (theirs if isinstance(theirs, str) else "")
        )
        if base is None:
            self.problems += [base_unreadable(p, place, named) for p in problems]
            return Checkpoint(source=self.name, revision=revision, adapter=adapter, **_where(named))
        self.problems += problems
        if has_adapter(base):
            self.problems.append(adapter_of_adapter(place, base))
            return Checkpoint(
                source=self.name,
                kind=base.kind,
                location=base.location,
                revision=base.revision,
                commit=base.commit,
                adapter=adapter,
            )
        return self.contents(base, revision, adapter)

    def refuse_revision(self, place: Place, option: str, revision: str) -> None:
        """Tell that a folder has no revisions; "main" is what recipes ask for by default, and harmless."""
        if place.kind == "folder" and revision not in ("", "main"):
            self.problems.append(
                checkpoint_problem(
                    "no-such-revision",
                    f"{option} {revision!r} was asked for, but {place} has no revisions",
                    f"leave {option} out, or give the Hub id of the repository",
                )
            )


def _where(source: str | os.PathLike[str]) -> dict[str, Any]:
    """`kind` and `location` of a source that couldn't be opened."""
    name = os.fspath(source)
    if looks_like_path(source):
        return {"kind": "folder", "location": os.path.abspath(os.path.expanduser(name)) if name else ""}
    return {"kind": "hub", "location": name}
