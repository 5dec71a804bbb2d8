"""Read the checkpoint that a source names: a folder, a Hub repository, or the base of an adapter."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from loadkit.errors import Problem
from loadkit.facts.checkpoint import AdapterFacts, Checkpoint
from loadkit.facts.contents import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    Files,
    problem,
    read_contents,
    read_json,
    read_tensors,
)
from loadkit.facts.folder import FolderFiles, looks_like_a_path, no_such_folder

__all__ = ["read_checkpoint"]


class _Place(msgspec.Struct):
    """Where a source was found: its files, and what `from_pretrained` is given for it."""

    files: Any
    kind: str
    location: str
    commit: str = ""


def read_checkpoint(
    source: str | os.PathLike[str],
    *,
    revision: str = "",
    adapter_revision: str = "",
    token: str | bool | None = None,
    cache_dir: str | None = None,
    local_files_only: bool = False,
    allow_pickle: bool = False,
    progress: Callable[[str], None] | None = None,
) -> tuple[Checkpoint, list[Problem]]:
    """Read what is known of a checkpoint before loading it: small files and headers, never weights.

    Parameters:
        source: a folder, a Hub id, or an adapter repository, whose base is then read.
        revision: branch, tag or commit of the model's repository; for an adapter, of its base.
        adapter_revision: branch, tag or commit of the adapter's repository.
        token: the Hub token; it appears in no message.
        cache_dir: where Hub files are cached.
        local_files_only: use what is cached only.
        allow_pickle: whether `.bin` weights will do.
        progress: told what takes long.

    Returns:
        What could be read (with an empty config where nothing could), and everything that is wrong.
    """
    name = os.fspath(source)

    def find(what: str, at: str) -> _Place | Problem:
        folder = Path(what).expanduser()
        if folder.is_dir():
            return _Place(FolderFiles(folder.absolute()), "folder", str(folder.absolute()))
        if looks_like_a_path(what):
            return no_such_folder(what)
        from loadkit.facts.hub import find_repository

        if progress is not None:
            progress(f"asking the Hub for {what}")
        found: Any = find_repository(
            what, at, token=token, cache_dir=cache_dir, local_files_only=local_files_only
        )
        return found if isinstance(found, Problem) else _Place(found, "hub", what, found.commit)

    place = find(name, adapter_revision or revision)
    if isinstance(place, Problem):
        return Checkpoint(source=name, location=name, revision=revision), [place]
    problems: list[Problem] = []
    adapter = None
    if ADAPTER_CONFIG in place.files.sizes:
        adapter = _adapter(name, place, problems)
        if "config.json" not in place.files.sizes:
            base = _base(adapter, place, problems)
            found = (
                None if base is None else find(base, revision or str(adapter.config.get("revision") or ""))
            )
            if found is None or isinstance(found, Problem):
                about = [] if found is None else [_without_base(adapter, base or "", found)]
                return Checkpoint(source=name, location=place.location, adapter=adapter), [*problems, *about]
            place = found
            if ADAPTER_CONFIG in place.files.sizes and "config.json" not in place.files.sizes:
                loop = problem(
                    "adapter-of-adapter",
                    f"the adapter {name!r} names {base!r} as its base, which is an adapter too",
                    "merge that adapter into its base first, or name a model as the base",
                )
                return Checkpoint(source=name, location=place.location, adapter=adapter), [*problems, loop]
    checkpoint, found_problems = _read(place.files, allow_pickle)
    facts = msgspec.structs.replace(
        checkpoint,
        source=name,
        kind=place.kind,
        location=place.location,
        revision=revision if place.kind == "hub" else "",
        commit=place.commit,
        adapter=adapter,
    )
    return facts, [*problems, *found_problems]


def _read(files: Files, allow_pickle: bool) -> tuple[Checkpoint, list[Problem]]:
    from loadkit.facts.unreadable import UnreadableError

    try:
        return read_contents(files, allow_pickle=allow_pickle)
    except UnreadableError as error:
        return Checkpoint(source=files.where), [error.problem]
    except OSError as error:
        said = problem(
            "unreadable",
            f"{files.where} can't be read: {error.strerror or error}",
            "check the permissions of the folder and its files",
        )
        return Checkpoint(source=files.where), [said]


def _adapter(source: str, place: _Place, problems: list[Problem]) -> AdapterFacts:
    files = place.files
    config = read_json(files, ADAPTER_CONFIG, problems)
    tensors = read_tensors(files, (ADAPTER_WEIGHTS,), problems) if ADAPTER_WEIGHTS in files.sizes else {}
    if ADAPTER_WEIGHTS not in files.sizes:
        problems.append(
            problem(
                "no-adapter-weights",
                f"{files.where} has an adapter_config.json, but no {ADAPTER_WEIGHTS}",
                "save the adapter as safetensors (PEFT's save_pretrained does)",
            )
        )
    return AdapterFacts(
        source=source, location=place.location, commit=place.commit, config=config, tensors=tensors
    )


def _base(adapter: AdapterFacts, place: _Place, problems: list[Problem]) -> str | None:
    """The base that an adapter names; a relative folder counts from here, then from the adapter's folder."""
    named = adapter.config.get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        problems.append(
            problem(
                "adapter-without-base",
                f"adapter_config.json of {adapter.source!r} names no base_model_name_or_path",
                "add it, or load the base and attach the adapter to it",
            )
        )
        return None
    if place.kind == "folder" and not Path(named).expanduser().is_dir():
        beside = Path(place.location) / named
        if beside.is_dir():
            return str(beside)
    return named


def _without_base(adapter: AdapterFacts, base: str, reason: Problem) -> Problem:
    return msgspec.structs.replace(
        reason, message=f"the adapter {adapter.source!r} names {base!r} as its base: {reason.message}"
    )
