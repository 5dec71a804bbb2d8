"""Which files hold a checkpoint's weights, by transformers' own order, and the headers of all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
from loadkit.facts.checkpoint.source import Place, checkpoint_problem
from loadkit.schema.request import Progress
from loadkit.text.suggest import some_of

__all__ = ["Weights", "has_full_weights", "read_headers", "read_weights"]

_SAFETENSORS = ".safetensors"
_INDEX = ".index.json"
_IN_ORDER = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


class Weights(msgspec.Struct, frozen=True, kw_only=True):
    """The weight files, under the names that `Checkpoint` has for it."""

    weight_format: Literal["safetensors", "pickle", "none"] = "none"
    weight_files: tuple[str, ...] = ()
    tensors: dict[str, TensorHeader] = {}


def has_full_weights(place: Place) -> bool:
    """Whether the place holds the weights of a whole model, of whatever format."""
    return any(place.size(name) is not None for name in _IN_ORDER)


def read_weights(
    place: Place, config: Mapping[str, Any], *, allow_pickle: bool = False, progress: Progress | None = None
) -> tuple[Weights, list[Problem]]:
    """Find the weight files and read their headers.

    Parameters:
        place: where the checkpoint is.
        config: config.json; it may name the weight file.
        allow_pickle: whether pickled weights are no problem; their tensors stay unknown.
        progress: called with a short sentence before headers are read.
    """
    chosen = _choose(place, config)
    if isinstance(chosen, Problem):
        return Weights(), [chosen]
    if not chosen.endswith(_INDEX):
        if not chosen.endswith(_SAFETENSORS):
            return _pickled((chosen,), chosen, allow_pickle)
        headers, problems = read_headers(place, [chosen])
        tensors = headers.get(chosen, {})
        return Weights(weight_format="safetensors", weight_files=(chosen,), tensors=tensors), problems
    index = read_json(place, chosen)
    shard_of = index if isinstance(index, Problem) else parse_index(chosen, index)
    kind: Literal["safetensors", "pickle"] = "safetensors" if _SAFETENSORS in chosen else "pickle"
    if isinstance(shard_of, Problem):
        return Weights(weight_format=kind), [shard_of]
    return _read_shards(place, chosen, shard_of, allow_pickle, progress)


def read_headers(
    place: Place, files: Sequence[str]
) -> tuple[dict[str, dict[str, TensorHeader]], list[Problem]]:
    """Read the headers of safetensors files that exist.

    Returns:
        File to tensor name to header, without the files that can't be read; and the problems with those.
    """
    headers: dict[str, dict[str, TensorHeader]] = {}
    problems: list[Problem] = []
    for file, found in read_each(place.workers, files, lambda file: _read_header(place, file)):
        if isinstance(found, Problem):
            problems.append(found)
        else:
            headers[file] = found
    return headers, problems


def _choose(place: Place, config: Mapping[str, Any]) -> str | Problem:
    named = config.get("transformers_weights")
    if isinstance(named, str) and named:
        path = safe_path("config.json", named)
        if isinstance(path, str) and place.size(path) is None:
            return _missing(place, "config.json", [path])
        return path
    for name in _IN_ORDER:
        if place.size(name) is not None:
            return name
    return place.absent(["model.safetensors"], no_weights(place))


def _read_shards(
    place: Place,
    index: str,
    shard_of: Mapping[str, str],
    allow_pickle: bool,
    progress: Progress | None,
) -> tuple[Weights, list[Problem]]:
    shards = sorted(set(shard_of.values()))
    missing = [shard for shard in shards if place.size(shard) is None]
    problems = [_missing(place, index, missing)] if missing else []
    # An index of safetensors may name other files, and transformers would unpickle them.
    pickled = [shard for shard in shards if not shard.endswith(_SAFETENSORS)]
    if pickled:
        weights, refused = _pickled(tuple(shards), some_of(pickled), allow_pickle)
        return weights, problems + refused
    present = [shard for shard in shards if shard not in missing]
    if progress and place.workers > 1:
        progress(f"reading the headers of {len(present)} weight files")
    headers, unread = read_headers(place, present)
    problems += unread
    tensors = {name: header for shard in present for name, header in headers.get(shard, {}).items()}
    lost: list[str] = []
    for name, shard in shard_of.items():
        if name in headers.get(shard, ()):
            tensors[name] = headers[shard][name]  # the index decides where several shards hold a tensor
        elif shard in headers and name not in tensors:
            lost.append(name)
    if lost:
        problems.append(
            checkpoint_problem(
                "index-mismatch",
                f"{index} lists {len(lost)} tensors that no weight file holds: {some_of(lost)}",
                "download the index and the weight files again, from one commit; loading would leave these random",
            )
        )
    return Weights(weight_format="safetensors", weight_files=tuple(shards), tensors=tensors), problems


def _read_header(place: Place, file: str) -> dict[str, TensorHeader] | Problem:
    size = place.size(file)
    assert size is not None
    start = place.read_range(file, 0, place.first_bytes)
    if isinstance(start, Problem):
        return start
    length = header_bytes(file, start, size)
    if isinstance(length, Problem):
        return length
    stop = PREFIX_BYTES + length
    if len(start) < stop:
        rest = place.read_range(file, len(start), stop)
        if isinstance(rest, Problem):
            return rest
        start += rest
    if len(start) < stop:
        return checkpoint_problem(
            "truncated-weights",
            f"{file} is cut short: expected {stop} bytes for its header alone, found {len(start)} bytes",
            "fetch the file again",
        )
    return parse_header(file, start[PREFIX_BYTES:stop], size)


def _missing(place: Place, named_by: str, files: Iterable[str]) -> Problem:
    every = list(files)
    return place.absent(
        every,
        checkpoint_problem(
            "missing-weight-file",
            f"{named_by} names {some_of(every)}, which {place} doesn't have",
            f"fetch what is missing, or correct {named_by}",
        ),
    )


def _pickled(files: tuple[str, ...], shown: str, allow_pickle: bool) -> tuple[Weights, list[Problem]]:
    weights = Weights(weight_format="pickle", weight_files=files)
    if allow_pickle:
        return weights, []
    return weights, [
        checkpoint_problem(
            "pickle-weights",
            f"the weights are pickled ({shown}), and loading a pickle can run code that it holds (CVE-2025-32434)",
            "use a revision with safetensors, convert them, or pass allow_pickle=True if you trust their maker",
        )
    ]
