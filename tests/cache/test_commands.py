"""`loadkit cache`, as people and scripts use it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cache.test_entries import put
from click.testing import CliRunner

from loadkit.cli import main
from loadkit.plugins import Entries


def call(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(main, ["cache", *arguments])
    assert result.exit_code == code, result.output
    return result.output


def test_an_empty_cache(entries: Entries) -> None:
    assert call("path").strip() == str(entries.root)
    assert call("list").startswith("0 B of at most")
    assert call("verify").endswith("the cache is empty\n")
    assert call("prune") == "0 B freed, 0 B stay\n"


def test_listing(entries: Entries) -> None:
    put(entries, "a1", 1000)
    put(entries, "b2", 2000)
    text = call("list")
    assert "a1" in text
    assert "2.0 KiB" in text
    listed = json.loads(call("list", "--json"))
    assert {e["key"]: e["bytes"] for e in listed["entries"]} == {"a1": 1000, "b2": 2000}
    assert listed["limit"] == entries.limit
    entries.begin("c3")
    assert "1 unfinished or damaged" in call("list")


def test_verifying_removes_what_is_damaged_and_says_so(entries: Entries) -> None:
    put(entries, "a1")
    put(entries, "b2")
    assert call("verify").count("whole") == 2
    Path(entries.root, "a1", "some.json").write_bytes(bytes(1000))
    text = call("verify", code=8)
    assert "a1  damaged and removed: some.json has another checksum" in text
    assert "b2  whole" in text
    assert [e.record.key for e in entries] == ["b2"]


def test_pruning(entries: Entries) -> None:
    for key in ("a1", "a2", "b1"):
        put(entries, key)
    assert "2.0 KiB freed" in call("prune", "a")
    assert "0 B freed, 1000 B stay" in call("prune", "--max", "1kB")
    removed = json.loads(call("prune", "--all", "--json"))
    assert [e["key"] for e in removed] == ["b1"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["prune", "zz"], "no entry's key begins with 'zz'"),
        (["prune", "--max", "much"], "isn't a size"),
        (["prune", "--all", "--max", "1"], "give one"),
        (["verify", "zz"], "no entry's key begins with 'zz'"),
    ],
)
def test_what_cant_be_done_is_said(arguments: list[str], said: str) -> None:
    assert said in call(*arguments, code=4)


def test_it_says_when_it_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOADKIT_QUANTIZED_CACHE", "off")
    assert "turned off: LOADKIT_QUANTIZED_CACHE=off" in call("list")
