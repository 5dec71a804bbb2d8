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
    led_elsewhere,
    no_base,
    not_an_adapter,
    read_adapter,
)
from loadkit.facts.checkpoint.checkpoint import AdapterFacts, Checkpoint, File
from loadkit.facts.checkpoint.config_files import Configs, read_configs
from loadkit.facts.checkpoint.folder import looks_like_path
from loadkit.facts.checkpoint.gguf import gguf_of, read_gguf
from loadkit.facts.checkpoint.missing_files import no_config
from loadkit.facts.checkpoint.open_source import open_source
from loadkit.facts.checkpoint.references import is_reference
from loadkit.facts.checkpoint.source import (
    Access,
    CheckpointFiles,
    OpenStore,
    checkpoint_problem,
    no_stores,
)
from loadkit.facts.checkpoint.weight_files import read_weight_files
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
    gguf_file: str = "",
    progress: Progress | None = None,
    stores: OpenStore = no_stores,
) -> tuple[Checkpoint, tuple[Problem, ...]]:
    """Read what a checkpoint's small files and its weight files' headers say. Weights are never downloaded.

    A source is an adapter where it has an adapter_config.json, unless it is a folder that also holds a whole
    model (an embedded adapter). The checkpoint is the base that the config names then, and the source its
    `adapter`. A base's path starts at the current directory, as in transformers, else at the adapter's
    folder.

    Parameters:
        source: a folder, a Hub id, an address that a plugin opens, or any of an adapter.
        revision: branch, tag or commit of the model; for an adapter that of its base, which otherwise is the
            `revision` in adapter_config.json, if any. Folders have none but "main".
        adapter_revision: branch, tag or commit of the adapter's repository, where the source is an adapter.
        token, cache_dir, local_files_only, progress, stores: as in `Access`.
        allow_pickle: whether pickled weights are no problem.
        gguf_file: the GGUF file in it that holds the model; "" for none. The path of one may be the source.

    Returns:
        The checkpoint as far as it could be read, and every problem; without an error among them it is whole.
    """
    access = Access(token, cache_dir, local_files_only, progress, stores)
    reader = _Reader(source, access, allow_pickle=allow_pickle, gguf_file=gguf_file)
    checkpoint = reader.checkpoint(revision, adapter_revision)
    return checkpoint, tuple(dict.fromkeys(reader.problems))  # one cause may stop several files


class _Reader:
    """One reading of a checkpoint, and the problems it found."""

    def __init__(
        self, source: str | os.PathLike[str], access: Access, *, allow_pickle: bool, gguf_file: str
    ) -> None:
        folder, named = gguf_of(source)
        self.source = folder or source
        self.gguf_file = gguf_file or named
        self.name = os.fspath(source)
        self.access = access
        self.allow_pickle = allow_pickle
        self.problems: list[Problem] = []

    def checkpoint(self, revision: str, adapter_revision: str) -> Checkpoint:
        """Read the source, and its base where it is an adapter."""
        files, base_revision, problems = self.find(revision, adapter_revision)
        self.problems += problems
        if files is None:
            return Checkpoint(source=self.name, revision=revision, **_unopened(self.source))
        if not has_adapter(files):
            return self.contents(files, revision, None)
        self.refuse_revision(files, "adapter_revision", adapter_revision)
        adapter, problems = read_adapter(files, self.name, allow_pickle=self.allow_pickle)
        self.problems += problems
        if is_adapter(files):
            return self.base(files, adapter, base_revision)
        return self.contents(files, revision, adapter)

    def find(self, revision: str, adapter_revision: str) -> tuple[CheckpointFiles | None, str, list[Problem]]:
        """The files that the source names, and the revision wanted of its base if that is an adapter.

        Whether the source is an adapter, and which of the revisions is its own, shows once it is open.
        """
        files, problems = open_source(self.source, adapter_revision or revision, self.access)
        if adapter_revision:
            if files is None or has_adapter(files):
                return files, revision, problems
            files, problems = open_source(self.source, revision, self.access)
            return files, "", [*problems, *([not_an_adapter(files, adapter_revision)] if files else [])]
        doubtful = is_adapter(files) if files else any(p.code in _WITHOUT_REVISION for p in problems)
        if revision and doubtful:
            own, found = open_source(self.source, "", self.access)
            if own is not None and is_adapter(own):
                return own, revision, found
        return files, "", problems

    def contents(self, files: CheckpointFiles, revision: str, adapter: AdapterFacts | None) -> Checkpoint:
        """Read a model's files; `revision` is what the user demands of it."""
        self.refuse_revision(files, "revision", revision)
        configs, problems = read_configs(files)
        self.problems += problems
        if self.gguf_file:
            return self.gguf(files, configs)
        weights, problems = read_weight_files(
            files, configs.config, allow_pickle=self.allow_pickle, progress=self.access.progress
        )
        if files.size("config.json") is None:
            self.problems.append(files.absent(["config.json"], no_config(files)))
            # What it is instead of a checkpoint is said there.
            problems = [p for p in problems if p.code != "no-weights"]
        self.problems += problems
        return Checkpoint(
            source=self.name,
            **_opened(files),
            files=tuple(File(name=name, size=size) for name, size in files.sizes.items()),
            adapter=adapter,
            **msgspec.structs.asdict(configs),
            **msgspec.structs.asdict(weights),
        )

    def gguf(self, files: CheckpointFiles, configs: Configs) -> Checkpoint:
        """Read a GGUF file, which has config, vocabulary and weights in one."""
        about: dict[str, Any] = {}
        found = read_gguf(files, self.gguf_file, configs.processing)
        if isinstance(found, Problem):
            self.problems.append(found)
        else:
            about = {**found._asdict(), "weight_files": (self.gguf_file,), "weight_format": "gguf"}
        return Checkpoint(
            source=self.name,
            **_opened(files),
            files=tuple(File(name=name, size=size) for name, size in files.sizes.items()),
            **about,
        )

    def base(self, files: CheckpointFiles, adapter: AdapterFacts, revision: str) -> Checkpoint:
        """Read the model that an adapter was made for."""
        named = adapter.config.get("base_model_name_or_path")
        if not isinstance(named, str) or not named:
            if adapter.config:  # otherwise it couldn't be read, which is a problem already
                self.problems.append(no_base(files))
            return Checkpoint(source=self.name, revision=revision, adapter=adapter)
        theirs = adapter.config.get("revision")
        wanted = revision or (theirs if isinstance(theirs, str) else "")
        if refused := led_elsewhere(files, named):
            self.problems.append(refused)
            return Checkpoint(source=self.name, revision=revision, adapter=adapter, **_unopened(named))
        base, problems = open_source(base_path(files, named), wanted, self.access)
        if base is None:
            self.problems += [base_unreadable(p, files, named) for p in problems]
            return Checkpoint(source=self.name, revision=revision, adapter=adapter, **_unopened(named))
        self.problems += problems
        if has_adapter(base):
            self.problems.append(adapter_of_adapter(files, base))
            return Checkpoint(source=self.name, **_opened(base), adapter=adapter)
        return self.contents(base, revision, adapter)

    def refuse_revision(self, files: CheckpointFiles, option: str, revision: str) -> None:
        """A folder has no revisions; "main" is what recipes ask for by default, and harmless."""
        if files.kind == "folder" and revision not in ("", "main"):
            message = f"{option} {revision!r} was asked for, but {files} has no revisions"
            remedy = f"leave {option} out, or give the Hub id of the repository"
            self.problems.append(checkpoint_problem("no-such-revision", message, remedy))


def _opened(files: CheckpointFiles) -> dict[str, Any]:
    return {name: getattr(files, name) for name in ("kind", "location", "revision", "commit")}


def _unopened(source: str | os.PathLike[str]) -> dict[str, Any]:
    """`kind` and `location` of a source that couldn't be opened."""
    name = os.fspath(source)
    if is_reference(source):
        return {"kind": "store", "location": name}
    if looks_like_path(source):
        return {"kind": "folder", "location": os.path.abspath(os.path.expanduser(name)) if name else ""}
    return {"kind": "hub", "location": name}
