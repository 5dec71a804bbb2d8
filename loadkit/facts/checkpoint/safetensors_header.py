"""What weight files say without their tensors' bytes: headers of safetensors files, and the index of shards.

The layout is the one of https://huggingface.co/docs/safetensors: eight bytes with the header's length
(little-endian), the header as JSON, then the tensors' bytes without gaps. `file` is a file's name, for
messages, and `size` its bytes, -1 where unknown.
"""

from __future__ import annotations

import math
import posixpath
import re
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from loadkit.errors import Problem
from loadkit.facts.checkpoint.checkpoint import TensorHeader
from loadkit.facts.checkpoint.source import checkpoint_problem

__all__ = ["MAX_HEADER_BYTES", "PREFIX_BYTES", "header_bytes", "parse_header", "parse_index", "safe_path"]

PREFIX_BYTES = 8
"""Bytes in front of the header that hold its length."""

MAX_HEADER_BYTES = 100_000_000
"""The longest header that safetensors itself accepts."""

_LFS_POINTER = b"version "  # the eight bytes that are read; as a length they would be impossible

_DTYPE_BITS: Mapping[str, int] = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "I8", "U8", "BOOL"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
"""Bits of one element, for every dtype of safetensors 0.8."""

_Count = Annotated[int, msgspec.Meta(ge=0)]


class _Entry(msgspec.Struct):
    dtype: str
    shape: tuple[_Count, ...]
    data_offsets: tuple[_Count, _Count]


def header_bytes(file: str, start: bytes, size: int) -> int | Problem:
    """Bytes of the header, without the eight in front of it, of a file that starts so; else a problem."""
    if start.startswith(_LFS_POINTER):
        message = f"{file} is a Git LFS pointer, {size} bytes of text that stand for the real file"
        remedy = "run `git lfs install` and `git lfs pull` in the folder, or download it with `hf download`"
        return checkpoint_problem("lfs-pointer", message, remedy)
    if len(start) < PREFIX_BYTES:
        return _truncated(file, "at least 8 bytes in front of its header", len(start))
    length = int.from_bytes(start[:PREFIX_BYTES], "little")
    if length > MAX_HEADER_BYTES:
        return _bad(
            file, f"its first 8 bytes announce a header of {length} bytes; at most 100 MB are allowed"
        )
    if 0 <= size < PREFIX_BYTES + length:
        return _truncated(file, f"{PREFIX_BYTES + length} bytes for its header alone", size)
    return length


def parse_header(file: str, header: bytes, size: int) -> dict[str, TensorHeader] | Problem:
    """Read a header, and check it against the file's size as safetensors will when it loads.

    Returns:
        Tensor name to header in the order of their bytes, or the problem with them.
    """
    try:
        decoded = msgspec.json.decode(header)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return _bad(file, f"its header isn't JSON: {error}")
    if not isinstance(decoded, dict):
        return _bad(file, f"its header is JSON, but a {type(decoded).__name__} instead of an object")
    metadata = decoded.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        return _bad(file, "its __metadata__ isn't an object of strings")
    try:
        entries = msgspec.convert(decoded, dict[str, _Entry])
    except msgspec.ValidationError:
        return _bad(file, _first_fault(decoded))
    tensors: dict[str, TensorHeader] = {}
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        begin, stop = entry.data_offsets
        if (bits := _DTYPE_BITS.get(entry.dtype)) is None:
            return _bad(
                file, f"tensor {name!r} has the dtype {entry.dtype!r}, which safetensors doesn't have"
            )
        needed, rest = divmod(math.prod(entry.shape) * bits, 8)
        if rest or stop - begin != needed:
            return _bad(
                file,
                f"tensor {name!r} is {entry.dtype} of shape {list(entry.shape)}, which takes "
                f"{needed + bool(rest)} bytes, but its offsets {begin} to {stop} give it {stop - begin}",
            )
        if begin != end:
            fault = "overlaps the one before it" if begin < end else "leaves a gap after the one before it"
            return _bad(file, f"tensor {name!r} starts at byte {begin}, which {fault} (end: {end})")
        tensors[name] = TensorHeader(entry.dtype, entry.shape, needed, file)
        end = stop
    expected = PREFIX_BYTES + len(header) + end
    if 0 <= size < expected:
        return _truncated(file, f"{expected} bytes", size)
    if size > expected:
        return _bad(file, f"it has {size} bytes, but its header accounts for {expected} only")
    return tensors


def parse_index(file: str, index: Mapping[str, Any]) -> dict[str, str] | Problem:
    """Read the index of shards: tensor name to its shard, a path inside the checkpoint; or a problem."""
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        return _bad_index(file, 'has no "weight_map" of tensor names to files')
    if not isinstance(index.get("metadata"), dict):
        return _bad_index(file, 'has no "metadata" object, which transformers requires (it may be empty)')
    shards: dict[str, str] = {}
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or not shard:
            return _bad_index(file, f"gives tensor {tensor!r} {shard!r} instead of a file's name")
        path = safe_path(file, shard)
        if isinstance(path, Problem):
            return path
        shards[tensor] = path
    return shards


def safe_path(file: str, path: str) -> str | Problem:
    """A path that a file of the checkpoint names, in its shortest form; a problem where it leads outside."""
    short = posixpath.normpath(path)
    if (
        short == ".."
        or short.startswith(("/", "../"))
        or "\\" in path
        or "\0" in path
        or re.match(r"[A-Za-z]:", path)
    ):
        message = f"{file} names the file {path!r}, which isn't a path inside the checkpoint"
        remedy = f"don't load it unless you know who wrote it; a sound {file} names files beside itself"
        return checkpoint_problem("path-escape", message, remedy)
    return short


def _first_fault(decoded: Mapping[str, Any]) -> str:
    for name, entry in decoded.items():
        try:
            msgspec.convert(entry, _Entry)
        except msgspec.ValidationError as error:  # noqa: PERF203 - the loop ends here
            return f"its header describes tensor {name!r} wrongly: {error}"
    return "its header describes a tensor wrongly"


def _bad(file: str, fault: str) -> Problem:
    remedy = (
        "the file is damaged or isn't a safetensors file: download it again, or save it again from the model"
    )
    return checkpoint_problem("bad-header", f"{file} can't be read as safetensors: {fault}", remedy)


def _truncated(file: str, expected: str, found: int) -> Problem:
    message = f"{file} is cut short: expected {expected}, found {found} bytes"
    remedy = "the copy or download was cut short: fetch the file again (and check the disk's free space)"
    return checkpoint_problem("truncated-weights", message, remedy)


def _bad_index(file: str, fault: str) -> Problem:
    remedy = "download it again, or save the model again with save_pretrained"
    return checkpoint_problem("bad-index", f"{file} {fault}", remedy)
