"""Sources that raise, lie, break off or name what isn't theirs: one problem each, with a stable code."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from stores import FolderSource, Store, manager_with

import loadkit
from loadkit import LoadError, PlanError, Problem, hookimpl
from loadkit.plugins import SourceError, SourceFile

Tiny = Callable[..., Path]
ABSURD = 1 << 60


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # the copies alone: the index of transformers stays
    monkeypatch.setattr("loadkit.facts.stores.copies.cache_folder", lambda: tmp_path / "cache")
    for module in ("store_files", "fetch"):
        monkeypatch.setattr(f"loadkit.facts.stores.{module}.PAUSES", (0.0, 0.0))
    return tmp_path / "cache"


@pytest.fixture
def store(tiny: Tiny, tmp_path: Path) -> Store:
    shutil.copytree(tiny("mistral"), tmp_path / "served")
    return Store(tiny=tmp_path / "served")


def refused(store: object, source: str = "store://tiny", **options: Any) -> list[Problem]:
    with pytest.raises(PlanError) as caught:
        loadkit.plan(source, plugin_manager=manager_with(store), **options)
    return [p for p in caught.value.problems if p.severity == "error"]


def telling(store: Store, **about: Any) -> Store:
    """Have its sources say something else of themselves."""

    def made(source: FolderSource) -> FolderSource:
        for name, value in about.items():
            setattr(source, name, value(source) if callable(value) else value)
        return source

    store.made = made
    return store


def more(name: Any, file: Any = None) -> Callable[[FolderSource], Mapping[Any, Any]]:
    return lambda source: {**source.files, name: SourceFile(size=2) if file is None else file}


@pytest.mark.parametrize(
    "files",
    [
        *(
            more(name)
            for name in ("../x", "/etc/passwd", "a/../../x", "a\\b", "C:/x", "a//b", "a/", "./x", "")
        ),
        *(
            more(name)
            for name in ("a\0b", "a\nb", "\ud800", 7, "x" * 2000, f"{'é' * 200}.json", "config.json/x")
        ),
        more("Config.json"),
        *(more("x", SourceFile(size=size)) for size in (-1, ABSURD, 2.5, True, "2")),  # type: ignore[arg-type]
        more("x", SourceFile(size=1, checksum="crc:1")),
        more("x", SourceFile(size=1, tag=b"x")),  # type: ignore[arg-type]
        more("x", 3),
        lambda source: [*source.files],
        None,
        lambda source: {f"{n}": SourceFile(size=1) for n in range(20_001)},
    ],
)
def test_files_that_cant_be(store: Store, files: Any, tmp_path: Path) -> None:
    (problem,) = refused(telling(store, files=files))
    assert (problem.code, "'a-store'" in problem.message) == ("bad-source", True)
    assert problem.message.isprintable()


@pytest.mark.parametrize("version", ["", None, 7, "x" * 10_000, "\ud800"])
def test_versions_that_cant_be(store: Store, version: object) -> None:
    assert [p.code for p in refused(telling(store, version=version))] == ["bad-source"]


class Odd(FolderSource):
    """A source whose reading is as it is told to be."""

    reading: Callable[[FolderSource, str, int, int], Any]

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        return type(self).reading(self, name, start, stop)  # type: ignore[no-any-return]


def odd(store: Store, reading: Callable[[FolderSource, str, int, int], Any]) -> Store:
    kind = type("Told", (Odd,), {"reading": staticmethod(reading)})
    store.made = lambda source: kind(store.folders["tiny"], store)
    return store


def right(source: FolderSource, name: str, start: int, stop: int) -> bytes:
    return FolderSource.read_range(source, name, start, stop)


def raising(error: BaseException) -> Callable[..., Any]:
    def reading(*args: object) -> bytes:
        raise error

    return reading


@pytest.mark.parametrize(
    ("reading", "code"),
    [
        (lambda *at: b"", "source-cut-short"),
        (lambda *at: right(*at)[:-1] if at[2] == 0 else b"", "source-cut-short"),
        (lambda *at: right(*at) + b"x", "bad-source"),
        (lambda *at: None, "bad-source"),
        (lambda *at: "text", "bad-source"),
        (lambda *at: Problem("a", "b", "c", "d", "e"), "bad-source"),
        (lambda *at: sys.exit(3), "source-failed"),
        (lambda *at: os._exit(3), "source-failed"),
        (raising(OSError("cut")), "source-failed"),
        (raising(RecursionError()), "source-failed"),
        (raising(StopIteration()), "source-failed"),
        (raising(SourceError("no such bucket", "look", "no-access")), "no-access"),
        (raising(SourceError("x", "y", "Not A Code")), "source-failed"),
    ],
)
def test_reading_that_goes_wrong(store: Store, reading: Callable[..., Any], code: str) -> None:
    problems = refused(odd(store, reading))
    assert {p.code for p in problems} == {code}
    assert len({p.message.split(" of ")[0] for p in problems}) == len(problems)


def test_one_cause_is_told_once(store: Store) -> None:
    assert len(refused(odd(store, raising(SourceError("no", "yes", "no-access"))))) == 1


def test_bytes_that_come_a_few_at_a_time_are_put_together(store: Store, own_cache: Path) -> None:
    odd(
        store, lambda source, name, start, stop: right(source, name, start, min(stop, start + 1 + start // 2))
    )
    loadkit.plan("store://tiny", plugin_manager=manager_with(store))
    odd(store, lambda source, name, start, stop: right(source, name, start, start + 1))
    shutil.rmtree(own_cache)
    assert {p.code for p in refused(store)} == {"bad-source"}


def test_a_header_that_is_announced_absurdly_is_refused(store: Store) -> None:
    (store.folders["tiny"] / "model.safetensors").write_bytes(b"\xff" * 7 + b"\x7f" + b"{}")
    assert [p.code for p in refused(store)] == ["bad-header"]


class Streaming(FolderSource):
    """A source that streams too much, too little, or wrongly."""

    pieces: Callable[[bytes], Any]

    def stream(self, name: str, start: int) -> Iterator[bytes]:
        if name.endswith(".safetensors"):
            yield from type(self).pieces((self._folder / name).read_bytes()[start:])
        else:
            yield from super().stream(name, start)


@pytest.mark.parametrize(
    ("pieces", "code"),
    [
        (lambda content: [content, b"x"], "bad-source"),
        (lambda content: [], "source-cut-short"),
        (lambda content: [7], "bad-source"),
        (lambda content: 7, "source-failed"),
        (lambda content: [None], "bad-source"),
    ],
)
def test_streams_that_go_wrong(store: Store, pieces: Callable[..., Any], code: str) -> None:
    kind = type("Told", (Streaming,), {"pieces": staticmethod(pieces)})
    store.made = lambda source: kind(store.folders["tiny"], store)
    with pytest.raises(LoadError, match=rf"\[{code}\]"):
        loadkit.load("store://tiny", plugin_manager=manager_with(store))


def test_a_stream_that_is_cut_again_and_again_is_gone_on_with(store: Store) -> None:
    kind = type("Told", (Streaming,), {"pieces": staticmethod(lambda content: cut_at(content, 20_000))})
    store.made = lambda source: kind(store.folders["tiny"], store)
    loadkit.load("store://tiny", plugin_manager=manager_with(store))


def cut_at(content: bytes, most: int) -> Iterator[bytes]:
    yield content[:most]
    if len(content) > most:
        raise ConnectionError("gone")


def hook(answer: Callable[[], Any]) -> object:
    class Plugin:
        @hookimpl
        def loadkit_open_source(self, reference: str) -> Any:
            return answer()

    return Plugin()


def interrupted() -> None:
    raise SourceError("asked for https://u:pw@host/x?sig=secret", "try https://host/x?sig=secret")


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (lambda: 7, "source-failed"),
        (list, "source-failed"),
        (lambda: 1 / 0, "source-failed"),
        (lambda: sys.exit(), "source-failed"),
        (lambda: Problem("checkpoint", "a-store", "my-code", "it is closed", "wait"), "my-code"),
        (interrupted, "source-failed"),
        (lambda: None, "no-plugin-for-scheme"),
    ],
)
def test_hooks_that_answer_wrongly(answer: Callable[[], Any], code: str) -> None:
    (problem,) = refused(hook(answer))
    assert problem.code == code
    assert "secret" not in str(problem)
    assert "pw" not in str(problem)


@pytest.mark.parametrize("source", ["store://key:secret@host/x", "store://host/x?X-Amz-Signature=secret"])
def test_an_address_with_a_secret_is_refused_and_not_repeated(store: Store, source: str) -> None:
    with pytest.raises(PlanError) as caught:
        loadkit.plan(source, plugin_manager=manager_with(store))
    assert [p.code for p in caught.value.problems] == ["secret-in-source"]
    assert "secret@" not in str(caught.value)
    assert "=secret" not in str(caught.value)


@pytest.mark.parametrize(
    "source", ["store://", "store:///", "store://a/../b", "store://a\nb", f"store://{'x' * 5000}"]
)
def test_addresses_that_are_none(store: Store, source: str) -> None:
    assert [p.code for p in refused(store, source)] == ["bad-source"]


def test_a_known_scheme_names_its_plugin() -> None:
    (problem,) = refused(hook(lambda: None), "s3://bucket/x")
    assert (problem.code, "pip install loadkit-fsspec" in problem.remedy) == ("no-plugin-for-scheme", True)


def test_addresses_of_the_hub_ask_no_plugin(store: Store) -> None:
    asked: list[int] = []
    plugin = hook(lambda: asked.append(1))
    assert [p.code for p in refused(plugin, "https://huggingface.co/owner/name")] == ["no-such-folder"]
    assert asked == []


def test_a_cache_that_everybody_writes_to_is_no_copy(store: Store, own_cache: Path) -> None:
    (own_cache / "stores").mkdir(parents=True)
    (own_cache / "stores").chmod(0o777)
    assert [p.code for p in refused(store)] == ["cache-unwritable"]


def test_a_record_that_was_changed_is_none(store: Store, own_cache: Path) -> None:
    loadkit.load("store://tiny", plugin_manager=manager_with(store))
    for record in own_cache.rglob("stores/*/*.json"):
        record.write_bytes(record.read_bytes().replace(b'"size":', b'"size": 1'))
    assert [p.code for p in refused(store, local_files_only=True)] == ["offline-not-cached"]
    loadkit.load("store://tiny", plugin_manager=manager_with(store))


def test_a_file_of_another_length_is_fetched_again(store: Store, own_cache: Path) -> None:
    first = loadkit.load("store://tiny", plugin_manager=manager_with(store))
    (weights,) = own_cache.rglob("model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-10])
    again = loadkit.load("store://tiny", plugin_manager=manager_with(store), verify="full")
    assert again.plan.checkpoint.commit == first.plan.checkpoint.commit
    assert weights.stat().st_size == (store.folders["tiny"] / "model.safetensors").stat().st_size


def test_an_address_as_a_path_is_told_to_be_text(store: Store) -> None:
    with pytest.raises(PlanError) as caught:
        loadkit.plan(Path("store://tiny"), plugin_manager=manager_with(store))
    (problem,) = caught.value.problems
    assert (problem.code, "'store://tiny'" in problem.remedy) == ("no-such-folder", True)


def test_a_small_file_that_was_lost_comes_again(store: Store, own_cache: Path) -> None:
    loadkit.load("store://tiny", plugin_manager=manager_with(store))
    (tokenizer,) = own_cache.rglob("tokenizer.json")
    tokenizer.unlink()
    assert loadkit.load("store://tiny", plugin_manager=manager_with(store)).tokenizer is not None
    assert not list(own_cache.rglob("*.parts"))
