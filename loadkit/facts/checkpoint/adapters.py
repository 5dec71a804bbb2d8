"""Adapters: what makes a checkpoint one, what it says of itself, and which model it was made for."""

from __future__ import annotations

import os

import msgspec

from loadkit.errors import Problem
from loadkit.facts.checkpoint.checkpoint import AdapterFacts, Checkpoint, TensorHeader
from loadkit.facts.checkpoint.config_files import read_json, read_processing
from loadkit.facts.checkpoint.folder import is_repository_id, open_folder
from loadkit.facts.checkpoint.references import is_reference, normal, same_store
from loadkit.facts.checkpoint.source import CheckpointFiles, checkpoint_problem
from loadkit.facts.checkpoint.weight_files import has_full_weights, read_headers
from loadkit.text.suggest import some_of

__all__ = [
    "adapter_of_adapter",
    "base_path",
    "base_unreadable",
    "has_adapter",
    "is_adapter",
    "no_base",
    "not_an_adapter",
    "read_adapter",
    "same_base",
]

_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
_PICKLE = "adapter_model.bin"
_NOT_FOUND = frozenset({"no-such-folder", "no-such-repository"})


def has_adapter(files: CheckpointFiles) -> bool:
    """Whether an adapter is among them, with or without a whole model."""
    return files.size(_CONFIG) is not None


def is_adapter(files: CheckpointFiles) -> bool:
    """Whether the base lies elsewhere.

    On the Hub an adapter_config.json always sends transformers to the base it names. In a folder a
    config.json keeps it there; but trainers write one beside an adapter too, so whole weights must be there.
    """
    if files.size(_CONFIG) is None:
        return False
    return files.kind == "hub" or files.size("config.json") is None or not has_full_weights(files)


def base_path(files: CheckpointFiles, named: str) -> str:
    """The source of an adapter's base: a relative path may also be meant from the adapter's folder."""
    if open_folder(named) is None and files.kind == "folder" and not os.path.isabs(os.path.expanduser(named)):
        beside = os.path.join(files.location, named)
        if os.path.isdir(beside):
            return beside
    return named


def led_elsewhere(files: CheckpointFiles, named: str) -> Problem | None:
    """The problem of an adapter whose config sends loadkit to a store that its user didn't name.

    Whoever writes an adapter would otherwise choose which addresses its users' machines ask, with their
    credentials. A folder is its user's own.
    """
    if not is_reference(named) or files.kind == "folder":
        return None
    if files.kind == "store" and same_store(files.location, named):
        return None
    return checkpoint_problem(
        "base-elsewhere",
        f"{files} is an adapter whose {_CONFIG} names {named[:200]!r} as its base, in another place than its own",
        f"if you trust that, name the base yourself: loadkit.load({named[:200]!r}, adapter={files.location!r})",
    )


def same_base(named: object, checkpoint: Checkpoint) -> bool | None:
    """Whether the base that an adapter's config names is the checkpoint.

    `base_model_name_or_path` is a Hub id, or a path on the machine that it was trained on. None where that
    isn't known: a path that isn't on this machine, or a folder that may be a copy of a repository.
    """
    if not isinstance(named, str) or not named:
        return None
    folder = open_folder(named)
    if folder is not None and checkpoint.kind == "folder":
        return os.path.realpath(folder.location) == os.path.realpath(checkpoint.location)
    if is_reference(named):
        return normal(named) == checkpoint.location
    if folder is None and checkpoint.kind == "hub" and is_repository_id(named):
        return named.casefold() == checkpoint.location.casefold()
    if folder is None and checkpoint.kind == "folder" and is_repository_id(named):
        cached = f"models--{named.replace('/', '--')}"  # a snapshot in the Hub cache
        return True if cached in checkpoint.location.split(os.sep) else None
    return None


def read_adapter(
    files: CheckpointFiles, source: str, *, allow_pickle: bool
) -> tuple[AdapterFacts, list[Problem]]:
    """Read an adapter's config and the header of its weights; `source` is what the user asked for."""
    problems: list[Problem] = []
    config = read_json(files, _CONFIG)
    if isinstance(config, Problem):
        problems.append(config)
        config = {}
    tensors: dict[str, TensorHeader] = {}
    if files.size(_WEIGHTS) is not None:
        headers, unread = read_headers(files, [_WEIGHTS])
        tensors = headers.get(_WEIGHTS, {})
        problems += unread
    elif files.size(_PICKLE) is None:
        problems.append(files.absent([_WEIGHTS], _no_weights(files)))
    elif not allow_pickle:
        problems.append(_pickled(files))
    if is_adapter(files) and has_full_weights(files):
        problems.append(_unused_model(files))
    processing, unread = read_processing(files)
    problems += unread
    facts = AdapterFacts(
        source=source,
        location=files.location,
        commit=files.commit,
        config=config,
        tensors=tensors,
        processing=processing,
    )
    return facts, problems


def not_an_adapter(files: CheckpointFiles, revision: str) -> Problem:
    """The problem of an adapter's revision asked of files without an adapter."""
    message = f"adapter_revision {revision!r} was asked for, but {files} has no {_CONFIG}"
    remedy = "use revision=… for a model, or give the adapter's folder or repository as the source"
    return checkpoint_problem("not-an-adapter", message, remedy)


def _unused_model(files: CheckpointFiles) -> Problem:
    return checkpoint_problem(
        "embedded-adapter",
        f"{files} holds an adapter and a whole model; the base that {_CONFIG} names is loaded instead of "
        "that model, as transformers does",
        f"to load the model alone, download the repository and remove {_CONFIG}",
        severity="warning",
    )


def _no_weights(files: CheckpointFiles) -> Problem:
    message = f"{files} has an {_CONFIG}, but no {_WEIGHTS} (it holds {some_of(files.sizes)})"
    remedy = "save the adapter again with save_pretrained, or download it whole"
    return checkpoint_problem("no-weights", message, remedy)


def _pickled(files: CheckpointFiles) -> Problem:
    message = (
        f"the adapter in {files} is pickled ({_PICKLE}), and loading a pickle can run code that it holds"
    )
    remedy = "save it as safetensors with a current PEFT, or pass allow_pickle=True if you trust its maker"
    return checkpoint_problem("pickle-weights", message, remedy)


def no_base(files: CheckpointFiles) -> Problem:
    """The problem of an adapter that doesn't say what it was made for."""
    message = f"{files} is an adapter, but its {_CONFIG} names no base (base_model_name_or_path)"
    remedy = f"write the folder or Hub id of the model it was trained on into {_CONFIG}"
    return checkpoint_problem("missing-base", message, remedy)


def base_unreadable(problem: Problem, files: CheckpointFiles, named: str) -> Problem:
    """Say of a problem with the base whose base it is."""
    return msgspec.structs.replace(
        problem,
        code="missing-base" if problem.code in _NOT_FOUND else problem.code,
        message=f"{files} is an adapter of {named!r}, which can't be read: {problem.message}",
        remedy=f"{problem.remedy}; base_model_name_or_path in {_CONFIG} may be corrected too",
    )


def adapter_of_adapter(files: CheckpointFiles, base: CheckpointFiles) -> Problem:
    """The problem of an adapter whose base is an adapter."""
    message = f"{files} is an adapter of {base}, which is an adapter itself; only an adapter of a model can be loaded"
    remedy = f"merge {base} into its own base and save that, or name a whole model as base_model_name_or_path"
    return checkpoint_problem("adapter-of-adapter", message, remedy)
