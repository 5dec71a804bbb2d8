"""Checksums of safetensors files, tensor by tensor, and files that only look like one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loadkit.cache.checksums import checksum, checksums, file_checksums

BODY = bytes(range(16))


def file(path: Path, header: Any, body: bytes = BODY) -> tuple[Path, bytes]:
    """A safetensors file, and the bytes of its header with their length before them."""
    text = json.dumps(header).encode()
    head = len(text).to_bytes(8, "little") + text
    path.write_bytes(head + body)
    return path, head


def tensor(start: Any, stop: Any) -> dict[str, Any]:
    return {"dtype": "U8", "shape": [4], "data_offsets": [start, stop]}


def test_the_checksum_is_the_one_that_caches_hold() -> None:
    """Another would make every entry that was written before look damaged."""
    assert checksum(b"") == "99aa06d3014798d86001c324468d497f"
    assert checksum(memoryview(b"")) == checksum(b"") != checksum(b"1")


def test_every_tensor_and_the_header_have_one_of_their_own(tmp_path: Path) -> None:
    header = {
        "__metadata__": {"format": "pt"},
        "a": tensor(0, 6),
        "b": tensor(6, 16),
        "empty": tensor(16, 16),
    }
    path, head = file(tmp_path / "x", header)
    expected = {"": checksum(head), "a": checksum(BODY[:6]), "b": checksum(BODY[6:]), "empty": checksum(b"")}
    assert file_checksums(path) == expected
    assert file_checksums(str(path), workers=1) == expected


def test_with_one_worker_no_thread_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None can be, as an interpreter ends."""
    parts = {"a": lambda: b"1", "b": lambda: b"2"}
    several = checksums(parts)
    monkeypatch.setattr("loadkit.cache.checksums.ThreadPoolExecutor", None)
    assert checksums(parts, workers=1) == several == {"a": checksum(b"1"), "b": checksum(b"2")}
    path, head = file(tmp_path / "x", {})
    assert file_checksums(path, workers=1) == {"": checksum(head)}


@pytest.mark.parametrize("content", [b"", b"1234567"])
def test_a_file_without_a_length_is_too_short(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ValueError, match="x is too short for a safetensors file"):
        file_checksums(tmp_path / "x")


def test_a_file_that_ends_within_its_header(tmp_path: Path) -> None:
    path, head = file(tmp_path / "x", {}, b"")
    assert file_checksums(path) == {"": checksum(head)}
    for content in (head[:-1], bytes(7) + b"\1{}"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="x is shorter than its header says"):
            file_checksums(path)


@pytest.mark.parametrize(("start", "stop"), [(0, 17), (-1, 4), (9, 8), (17, 17)])
def test_a_tensor_that_isnt_within_the_file(start: int, stop: int, tmp_path: Path) -> None:
    path, _ = file(tmp_path / "x", {"a": tensor(0, 4), "b": tensor(start, stop)})
    with pytest.raises(ValueError, match="x is shorter than its header says"):
        file_checksums(path)


@pytest.mark.parametrize(
    "header",
    [["a"], "a", {"a": {}}, {"a": 5}, {"a": tensor("0", "4")}, {"a": {"data_offsets": [0]}}],
    ids=["a list", "text", "no offsets", "a number", "offsets that are text", "one offset"],
)
def test_a_header_of_another_kind_is_damaged(header: Any, tmp_path: Path) -> None:
    path, _ = file(tmp_path / "x", header)
    with pytest.raises(ValueError, match=r"the header of .*x is damaged: "):
        file_checksums(path)


def test_a_header_that_isnt_json_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes((4).to_bytes(8, "little") + b"{{{{")
    with pytest.raises(ValueError, match="is damaged"):
        file_checksums(tmp_path / "x")
