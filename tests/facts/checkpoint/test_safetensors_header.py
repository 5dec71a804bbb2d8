"""Headers and indexes: what loadkit reads of them, and that it refuses what safetensors itself refuses."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from handmade import raw_safetensors
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from loadkit.errors import Problem
from loadkit.facts.checkpoint.checkpoint import TensorHeader
from loadkit.facts.checkpoint.safetensors_header import header_bytes, parse_header, parse_index, safe_path

FILE = "model.safetensors"
PAIR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def ours(data: bytes) -> dict[str, TensorHeader] | Problem:
    length = header_bytes(FILE, data[:8], len(data))
    return length if isinstance(length, Problem) else parse_header(FILE, data[8 : 8 + length], len(data))


def theirs(data: bytes) -> set[str] | str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, FILE)
        path.write_bytes(data)
        try:
            with safe_open(path, "np") as file:
                return set(file.keys())
        except SafetensorError as error:
            return str(error)


def test_a_real_file_is_read() -> None:
    data = save(
        {"b": np.ones((3, 5), np.float16), "a": np.ones((), np.int64), "none": np.ones((0, 4), np.uint8)}
    )
    assert ours(data) == {
        "a": TensorHeader("I64", (), 8, FILE),
        "b": TensorHeader("F16", (3, 5), 30, FILE),
        "none": TensorHeader("U8", (0, 4), 0, FILE),
    }


@pytest.mark.parametrize(
    "dtype",
    [
        "BOOL",
        "F4",
        "F6_E2M3",
        "F6_E3M2",
        "U8",
        "I8",
        "F8_E5M2",
        "F8_E4M3",
        "F8_E8M0",
        "F8_E4M3FNUZ",
        "F8_E5M2FNUZ",
        "I16",
        "U16",
        "F16",
        "BF16",
        "I32",
        "U32",
        "F32",
        "C64",
        "F64",
        "I64",
        "U64",
    ],
)
def test_every_dtype_has_safetensors_own_size(dtype: str) -> None:
    """The data's size is searched for: exactly one fits, and both must find it the right one."""
    fitting = [
        size
        for size in range(130)
        if isinstance(
            theirs(
                raw_safetensors(
                    {"x": {"dtype": dtype, "shape": [16], "data_offsets": [0, size]}}, bytes(size)
                )
            ),
            set,
        )
    ]
    assert len(fitting) == 1
    found = ours(
        raw_safetensors(
            {"x": {"dtype": dtype, "shape": [16], "data_offsets": [0, *fitting]}}, bytes(*fitting)
        )
    )
    assert found == {"x": TensorHeader(dtype, (16,), fitting[0], FILE)}


DAMAGED: dict[str, tuple[bytes, str, str]] = {
    "nothing at all": (b"", "truncated-weights", "found 0 bytes"),
    "cut in the length": (b"\x10\0\0", "truncated-weights", "found 3 bytes"),
    "cut in the header": (raw_safetensors({"a": PAIR})[:30], "truncated-weights", "found 30 bytes"),
    "cut in the data": (raw_safetensors({"a": PAIR}, bytes(7)), "truncated-weights", "found 76 bytes"),
    "more than the header tells": (
        raw_safetensors({"a": PAIR}, bytes(9)),
        "bad-header",
        "accounts for 77 only",
    ),
    "header too long": (raw_safetensors(b"{}", length=100_000_001), "bad-header", "100 MB"),
    "no JSON": (raw_safetensors(b"{'a': 1}"), "bad-header", "isn't JSON"),
    "no text": (raw_safetensors(b'{"\xff": 1}'), "bad-header", "isn't JSON"),
    "a list": (raw_safetensors([]), "bad-header", "a list instead of an object"),
    "an unknown dtype": (raw_safetensors({"a": PAIR | {"dtype": "Q4"}}, bytes(8)), "bad-header", "'Q4'"),
    "another shape": (
        raw_safetensors({"a": PAIR | {"shape": [3]}}, bytes(8)),
        "bad-header",
        "takes 12 bytes",
    ),
    "a negative shape": (
        raw_safetensors({"a": PAIR | {"shape": [-2]}}, bytes(8)),
        "bad-header",
        "tensor 'a'",
    ),
    "a shape of text": (raw_safetensors({"a": PAIR | {"shape": "2"}}, bytes(8)), "bad-header", "tensor 'a'"),
    "no offsets": (
        raw_safetensors({"a": {"dtype": "F32", "shape": [2]}}, bytes(8)),
        "bad-header",
        "tensor 'a'",
    ),
    "offsets backwards": (
        raw_safetensors({"a": PAIR | {"data_offsets": [8, 0]}}, bytes(8)),
        "bad-header",
        "give it -8",
    ),
    "half a byte": (
        raw_safetensors({"a": {"dtype": "F4", "shape": [3], "data_offsets": [0, 1]}}, b"0"),
        "bad-header",
        "takes 2 bytes",
    ),
    "a gap": (
        raw_safetensors({"a": PAIR | {"data_offsets": [4, 12]}}, bytes(12)),
        "bad-header",
        "leaves a gap",
    ),
    "an overlap": (raw_safetensors({"a": PAIR, "b": PAIR}, bytes(8)), "bad-header", "overlaps"),
    "numbers as metadata": (
        raw_safetensors({"__metadata__": {"a": 1}, "a": PAIR}, bytes(8)),
        "bad-header",
        "strings",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_reported_and_safetensors_agrees(name: str) -> None:
    data, code, words = DAMAGED[name]
    problem = ours(data)
    assert isinstance(problem, Problem)
    assert (problem.code, problem.stage, problem.plugin) == (code, "checkpoint", "loadkit")
    assert FILE in problem.message
    assert words in problem.message
    assert problem.remedy
    assert isinstance(theirs(data), str)


@pytest.mark.parametrize(
    "header",
    [{}, {"__metadata__": None, "a": PAIR}, {"__metadata__": {"format": "pt"}, "a": PAIR | {"more": 1}}],
    ids=["empty", "null metadata", "an unknown field"],
)
def test_what_safetensors_tolerates_is_read(header: dict[str, Any]) -> None:
    data = raw_safetensors(header, bytes(8 if header else 0))
    read = ours(data)
    assert isinstance(read, dict)
    assert set(read) == theirs(data)


def test_a_git_lfs_pointer_is_recognised() -> None:
    problem = ours(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    assert isinstance(problem, Problem)
    # Eight bytes of it are enough, because only those are read of a file in a folder.
    assert problem.code == "lfs-pointer"
    assert "git lfs pull" in problem.remedy


@st.composite
def headers(draw: st.DrawFn) -> bytes:
    """Files that are nearly right: tensors in a row, with at most a few numbers moved."""
    header: dict[str, Any] = {}
    end = 0
    for name in draw(st.lists(st.sampled_from("abcd"), unique=True, max_size=4)):
        dtype, size = draw(st.sampled_from([("F32", 4), ("BF16", 2), ("U8", 1), ("I64", 8)]))
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        length = size * int(np.prod(shape, dtype=int))
        begin = end + draw(st.sampled_from([0, 0, 0, 0, 0, -1, 1]))
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, begin + length]}
        end = begin + length
    spare = draw(st.sampled_from([0, 0, 0, 0, -1, 1]))
    return raw_safetensors(header, bytes(max(0, end + spare)))


@settings(deadline=None)  # a loaded machine is no failure
@given(headers())
def test_loadkit_and_safetensors_agree_on_near_misses(data: bytes) -> None:
    mine, real = ours(data), theirs(data)
    assert isinstance(mine, Problem) == isinstance(real, str), (mine, real)
    if isinstance(mine, dict):
        assert set(mine) == real


@settings(deadline=None)  # a loaded machine is no failure
@given(st.integers(0, 200), st.integers(0, 255))
def test_loadkit_refuses_what_safetensors_refuses_after_a_flipped_byte(position: int, byte: int) -> None:
    data = bytearray(save({"alpha": np.ones((2, 3), np.float32), "beta": np.ones((4,), np.int64)}))
    data[position % len(data)] = byte
    mine, real = ours(bytes(data)), theirs(bytes(data))
    assert isinstance(mine, Problem) == isinstance(real, str), (bytes(data), mine, real)


def test_an_index_is_read() -> None:
    index = {"metadata": {}, "weight_map": {"a": "one.safetensors", "b": "./sub/two.safetensors"}}
    assert parse_index("i.json", index) == {"a": "one.safetensors", "b": "sub/two.safetensors"}


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ({"metadata": {}}, "weight_map"),
        ({"metadata": {}, "weight_map": {}}, "weight_map"),
        ({"metadata": {}, "weight_map": ["a"]}, "weight_map"),
        ({"metadata": {}, "weight_map": {"a": 1}}, "tensor 'a' 1"),
        ({"weight_map": {"a": "x"}}, "metadata"),
        ({"metadata": None, "weight_map": {"a": "x"}}, "metadata"),
    ],
)
def test_a_bad_index_is_reported(index: dict[str, Any], words: str) -> None:
    problem = parse_index("i.json", index)
    assert isinstance(problem, Problem)
    assert problem.code == "bad-index"
    assert words in problem.message


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/passwd", "..\\x", "C:x", "C:\\x", "..", "a\0b"])
def test_a_path_that_leads_outside_is_refused(path: str) -> None:
    problem = safe_path("i.json", path)
    assert isinstance(problem, Problem)
    assert problem.code == "path-escape"
    assert repr(path) in problem.message
    assert parse_index("i.json", {"metadata": {}, "weight_map": {"a": path}}) == problem


@pytest.mark.parametrize(("path", "short"), [("a", "a"), ("a/./b", "a/b"), ("x/../a", "a"), ("..a", "..a")])
def test_a_path_inside_is_taken(path: str, short: str) -> None:
    assert safe_path("i.json", path) == short
