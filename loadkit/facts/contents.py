"""Read a checkpoint's small files and weight headers into facts, wherever the files are."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import msgspec

from loadkit.errors import Problem
from loadkit.facts.checkpoint import Checkpoint, File, TensorHeader
from loadkit.facts.weights import HeaderError, read_header, read_index

__all__ = ["Files", "problem", "read_contents", "read_json", "read_tensors"]

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
WORKERS = 8
"""Shards whose headers are fetched at once; a local disk doesn't notice, a Hub does."""


class Files(Protocol):
    """The files of one checkpoint at one commit."""

    where: str

    @property
    def sizes(self) -> Mapping[str, int]:
        """Path in the checkpoint to bytes."""

    def content(self, name: str) -> bytes:
        """All of a small file."""

    def span(self, name: str, start: int, stop: int) -> bytes:
        """Some bytes of a large file."""


def read_contents(files: Files, *, allow_pickle: bool) -> tuple[Checkpoint, list[Problem]]:
    """Read config, companions and headers; `source`, `kind` and `commit` are left to the caller.

    Parameters:
        files: the checkpoint's files.
        allow_pickle: whether `.bin` weights will do.

    Returns:
        What could be read, and everything that is wrong with it.
    """
    problems: list[Problem] = []
    config = read_json(files, "config.json", problems)
    if "config.json" not in files.sizes:
        problems.append(_no_config(files))
    elif not config and not problems:
        problems.append(
            problem(
                "config-not-object", f"config.json of {files.where} is empty", "save the model's config again"
            )
        )
    companions = {
        name: read_json(files, f"{name}.json", problems)
        for name in ("generation_config", "tokenizer_config", "preprocessor_config", "processor_config")
        if f"{name}.json" in files.sizes
    }
    weights = _weights(files, allow_pickle, problems) if "config.json" in files.sizes else _Weights()
    return Checkpoint(
        source=files.where,
        config=config,
        generation_config=companions.get("generation_config", {}),
        tokenizer_config=companions.get("tokenizer_config", {}),
        processor_config={
            **companions.get("preprocessor_config", {}),
            **companions.get("processor_config", {}),
        },
        chat_template=_chat_template(files, companions.get("tokenizer_config", {})),
        files=tuple(File(name=name, size=size) for name, size in sorted(files.sizes.items())),
        tensors=weights.tensors,
        weight_files=weights.files,
        weight_format=weights.format,  # type: ignore[arg-type]
    ), problems


def read_json(files: Files, name: str, problems: list[Problem]) -> dict[str, Any]:
    """A JSON file's object; empty, with a problem, where it isn't one; empty where it isn't there."""
    if name not in files.sizes:
        return {}
    content = files.content(name)
    try:
        decoded = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        problems.append(
            problem(
                "bad-json",
                f"{name} of {files.where} isn't JSON: {error}{_place(content)}",
                "mend or replace the file",
            )
        )
        return {}
    if not isinstance(decoded, dict):
        problems.append(
            problem(
                "config-not-object",
                f"{name} of {files.where} holds a {type(decoded).__name__}, not an object",
                "mend or replace the file",
            )
        )
        return {}
    return decoded


def read_tensors(files: Files, names: tuple[str, ...], problems: list[Problem]) -> dict[str, TensorHeader]:
    """The headers of safetensors files; a damaged one is a problem."""

    def one(name: str) -> dict[str, TensorHeader] | HeaderError:
        try:
            return read_header(lambda start, stop: files.span(name, start, stop), files.sizes[name], name)
        except HeaderError as error:
            return error

    found: dict[str, TensorHeader] = {}
    if len(names) == 1:
        results = [one(names[0])]
    else:
        with ThreadPoolExecutor(WORKERS) as pool:
            results = list(pool.map(one, names))
    for result in results:
        if isinstance(result, HeaderError):
            problems.append(_damaged(files, result))
        else:
            found |= result
    return found


def problem(code: str, message: str, remedy: str) -> Problem:
    """A problem of the checkpoint, found by the core."""
    return Problem(stage="checkpoint", plugin="loadkit", code=code, message=message, remedy=remedy)


class _Weights(msgspec.Struct):
    format: str = "none"
    files: tuple[str, ...] = ()
    tensors: dict[str, TensorHeader] = {}


def _weights(files: Files, allow_pickle: bool, problems: list[Problem]) -> _Weights:
    sizes = files.sizes
    if SINGLE in sizes:
        return _Weights("safetensors", (SINGLE,), read_tensors(files, (SINGLE,), problems))
    if INDEX in sizes:
        return _sharded(files, problems)
    pickles = tuple(name for name in PICKLES if name in sizes)
    if pickles:
        if not allow_pickle:
            problems.append(
                problem(
                    "pickle-weights",
                    f"{files.where} has its weights only in {pickles[0]}, a pickle, which can run code while loading",
                    "convert them to safetensors (save_pretrained writes it), or pass allow_pickle=True if you trust them",
                )
            )
        return _Weights("pickle", pickles)
    problems.append(_no_weights(files))
    return _Weights()


def _sharded(files: Files, problems: list[Problem]) -> _Weights:
    try:
        index = read_index(files.content(INDEX), INDEX)
    except HeaderError as error:
        problems.append(_damaged(files, error))
        return _Weights("safetensors")
    shards = tuple(sorted(set(index.values())))
    missing = [shard for shard in shards if shard not in files.sizes]
    if missing:
        problems.append(
            problem(
                "missing-weight-file",
                f"{INDEX} of {files.where} names {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} missing",
                "complete the download or the copy",
            )
        )
    tensors = read_tensors(files, tuple(s for s in shards if s in files.sizes), problems)
    if (
        not missing
        and (lost := sorted(index.keys() - tensors.keys()))
        and not any(p.code.endswith("header") or p.code == "truncated-weights" for p in problems)
    ):
        problems.append(
            problem(
                "index-mismatch",
                f"{INDEX} of {files.where} places {lost[0]!r}{f' and {len(lost) - 1} more' if len(lost) > 1 else ''} in a "
                "shard that doesn't hold it",
                "the index and the shards are of different checkpoints: copy both from one",
            )
        )
    return _Weights("safetensors", shards, tensors)


def _damaged(files: Files, error: HeaderError) -> Problem:
    return problem(error.code, f"{error} (in {files.where})", "download or copy the file again")


def _no_config(files: Files) -> Problem:
    names = sorted(files.sizes)
    shown = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
    if not names:
        found = "it is empty"
    elif any(name.endswith(".gguf") for name in names):
        found = f"it has GGUF files ({shown}), which loadkit doesn't load"
    else:
        found = f"it has {shown}"
    return problem(
        "no-config",
        f"{files.where} has no config.json: {found}",
        "name a folder that save_pretrained wrote, or a model's repository",
    )


def _no_weights(files: Files) -> Problem:
    others = [
        n
        for n in sorted(files.sizes)
        if n.endswith((".safetensors", ".gguf", ".bin", ".pth", ".h5", ".msgpack"))
    ]
    found = f"; it has {', '.join(others[:6])}, which transformers doesn't load by default" if others else ""
    return problem(
        "no-weights",
        f"{files.where} has neither {SINGLE} nor {INDEX}{found}",
        "complete the download, or convert the weights to safetensors with save_pretrained",
    )


def _chat_template(files: Files, tokenizer_config: Mapping[str, Any]) -> str | None:
    if "chat_template.jinja" in files.sizes:
        return files.content("chat_template.jinja").decode("utf-8", "replace")
    found = tokenizer_config.get("chat_template")
    return found if isinstance(found, str) else None


def _place(content: bytes) -> str:
    """Line and column of the first fault, which the standard library's parser tells."""
    import json

    try:
        json.loads(content)
    except json.JSONDecodeError as error:
        return f" (line {error.lineno}, column {error.colno})"
    except UnicodeDecodeError:
        return ""
    return ""
