"""Which files hold a checkpoint's weights, by transformers' own order, and the headers of all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from loadkit.errors import Problem
from loadkit.facts.checkpoint.checkpoint import TensorHeader
from loadkit.facts.checkpoint.config_files import read_each, read_json
from loadkit.facts.checkpoint.missing_files import no_weights
from loadkit.facts.checkpoint.safetensors_header import (
    PREFIX_BYTES,
    header_bytes,
    parse_header,
    parse_index,
    safe_path,
)
from loadkit.facts.checkpoint.source import CheckpointFiles, checkpoint_problem
from loadkit.schema.request import Progress
from loadkit.text.suggest import some_of

__all__ = ["WeightFiles", "has_full_weights", "read_headers", "read_weight_files"]

_SAFETENSORS = ".safetensors"
_INDEX = ".index.json"
_IN_ORDER = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


class WeightFiles(msgspec.Struct, frozen=True, kw_only=True):
    """The weight files, under the names that `Checkpoint` has for it."""

    weight_format: Literal["safetensors", "pickle", "none"] = "none"
    weight_files: tuple[str, ...] = ()
    tensors: dict[str, TensorHeader] = {}


def has_full_weights(files: CheckpointFiles) -> bool:
    """Whether the weights of a whole model are among them, of whatever format."""
    return any(files.size(name) is not None for name in _IN_ORDER)


def read_weight_files(
    files: CheckpointFiles,
    config: Mapping[str, Any],
    *,
    allow_pickle: bool = False,
    progress: Progress | None = None,
) -> tuple[WeightFiles, list[Problem]]:
    """Find the weight files, which config.json may name, and read their headers; pickles have none."""
    chosen = _choose(files, config)
    if isinstance(chosen, Problem):
        return WeightFiles(), [chosen]
    if not chosen.endswith(_INDEX):
        if not chosen.endswith(_SAFETENSORS):
            return _pickled((chosen,), chosen, allow_pickle)
        headers, problems = read_headers(files, [chosen])
        tensors = headers.get(chosen, {})
        return WeightFiles(weight_format="safetensors", weight_files=(chosen,), tensors=tensors), problems
    index = read_json(files, chosen)
    shard_of = index if isinstance(index, Problem) else parse_index(chosen, index)
    kind: Literal["safetensors", "pickle"] = "safetensors" if _SAFETENSORS in chosen else "pickle"
    if isinstance(shard_of, Problem):
        return WeightFiles(weight_format=kind), [shard_of]
    return _read_shards(files, chosen, shard_of, allow_pickle, progress)


def read_headers(
    files: CheckpointFiles, names: Sequence[str]
) -> tuple[dict[str, dict[str, TensorHeader]], list[Problem]]:
    """Read safetensors files' headers: file to tensor name to header, without those that have problems."""
    headers: dict[str, dict[str, TensorHeader]] = {}
    problems: list[Problem] = []
    for name, found in read_each(files.workers, names, lambda name: _read_header(files, name)):
        if isinstance(found, Problem):
            problems.append(found)
        else:
            headers[name] = found
    return headers, problems


def _choose(files: CheckpointFiles, config: Mapping[str, Any]) -> str | Problem:
    named = config.get("transformers_weights")
    if isinstance(named, str) and named:
        path = safe_path("config.json", named)
        if isinstance(path, str) and files.size(path) is None:
            return _missing(files, "config.json", [path])
        return path
    for name in _IN_ORDER:
        if files.size(name) is not None:
            return name
    return files.absent(["model.safetensors"], no_weights(files))


def _read_shards(
    files: CheckpointFiles,
    index: str,
    shard_of: Mapping[str, str],
    allow_pickle: bool,
    progress: Progress | None,
) -> tuple[WeightFiles, list[Problem]]:
    shards = sorted(set(shard_of.values()))
    missing = [shard for shard in shards if files.size(shard) is None]
    problems = [_missing(files, index, missing)] if missing else []
    # An index of safetensors may name other files, and transformers would unpickle them.
    pickled = [shard for shard in shards if not shard.endswith(_SAFETENSORS)]
    if pickled:
        weights, refused = _pickled(tuple(shards), some_of(pickled), allow_pickle)
        return weights, problems + refused
    present = [shard for shard in shards if shard not in missing]
    if progress and files.workers > 1:
        progress(f"reading the headers of {len(present)} weight files")
    headers, unread = read_headers(files, present)
    problems += unread
    tensors = {name: header for shard in present for name, header in headers.get(shard, {}).items()}
    lost: list[str] = []
    for name, shard in shard_of.items():
        if name in headers.get(shard, ()):
            tensors[name] = headers[shard][name]  # the index decides where several shards hold a tensor
        elif shard in headers and name not in tensors:
            lost.append(name)
    homes = Counter(name for shard in present for name in headers.get(shard, {}))
    if several := sorted(name for name, count in homes.items() if count > 1):
        where = ", ".join(shard for shard in present if several[0] in headers.get(shard, {}))
        message = (
            f"{some_of(several)}: in more than one weight file ({where}), of which only one can be loaded"
        )
        remedy = (
            f"remove it from the file that {index} doesn't name, or fetch all files again, from one commit"
        )
        problems.append(checkpoint_problem("tensor-twice", message, remedy))
    if lost:
        message = f"{index} lists {len(lost)} tensors that no weight file holds: {some_of(lost)}"
        remedy = (
            "download the index and the weight files again, from one commit; loading would leave these random"
        )
        problems.append(checkpoint_problem("index-mismatch", message, remedy))
    return WeightFiles(weight_format="safetensors", weight_files=tuple(shards), tensors=tensors), problems


def _read_header(files: CheckpointFiles, name: str) -> dict[str, TensorHeader] | Problem:
    size = files.size(name)
    assert size is not None
    start = files.read_range(name, 0, files.first_bytes)
    if isinstance(start, Problem):
        return start
    length = header_bytes(name, start, size)
    if isinstance(length, Problem):
        return length
    stop = PREFIX_BYTES + length
    if len(start) < stop:
        rest = files.read_range(name, len(start), stop)
        if isinstance(rest, Problem):
            return rest
        start += rest
    if len(start) < stop:
        message = f"{name} is cut short: expected {stop} bytes for its header alone, found {len(start)} bytes"
        return checkpoint_problem("truncated-weights", message, "fetch the file again")
    return parse_header(name, start[PREFIX_BYTES:stop], size)


def _missing(files: CheckpointFiles, named_by: str, names: Sequence[str]) -> Problem:
    message = f"{named_by} names {some_of(names)}, which {files} doesn't have"
    remedy = f"fetch what is missing, or correct {named_by}"
    return files.absent(names, checkpoint_problem("missing-weight-file", message, remedy))


def _pickled(names: tuple[str, ...], shown: str, allow_pickle: bool) -> tuple[WeightFiles, list[Problem]]:
    weights = WeightFiles(weight_format="pickle", weight_files=names)
    message = (
        f"the weights are pickled ({shown}), and loading a pickle can run code that it holds (CVE-2025-32434)"
    )
    remedy = (
        "use a revision with safetensors, convert them, or pass allow_pickle=True if you trust their maker"
    )
    return weights, [] if allow_pickle else [checkpoint_problem("pickle-weights", message, remedy)]
