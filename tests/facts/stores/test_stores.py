"""Checkpoints that a plugin brings: planned by ranges, loaded from a copy, in the state that was planned."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from stores import FolderSource, Store, manager_with

import loadkit
from loadkit import LoadError, PlanError
from loadkit.facts.stores.copies import copy_folder

Tiny = Callable[..., Path]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # the copies alone: the index of transformers stays
    monkeypatch.setattr("loadkit.facts.stores.copies.cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("store_files", "fetch"):
        monkeypatch.setattr(f"loadkit.facts.stores.{module}.PAUSES", (0.0, 0.0))


@pytest.fixture
def store(tiny: Tiny, tmp_path: Path) -> Store:
    shutil.copytree(tiny("mistral"), tmp_path / "served")
    return Store(tiny=tmp_path / "served")


def planned(store: Store, source: str = "store://tiny", **options: object) -> loadkit.Plan:
    return loadkit.plan(source, plugin_manager=manager_with(store), **options)


def refused(store: Store, source: str = "store://tiny", **options: object) -> list[tuple[str, str]]:
    with pytest.raises(PlanError) as caught:
        planned(store, source, **options)
    return [(p.code, p.message) for p in caught.value.problems if p.severity == "error"]


def test_a_plan_reads_small_files_and_headers(store: Store) -> None:
    store.folders["tiny"].joinpath("model.safetensors").open("ab").close()
    plan = planned(store)
    assert (plan.checkpoint.kind, plan.checkpoint.location) == ("store", "store://tiny")
    assert len(plan.checkpoint.commit) == 40
    assert store.read["model.safetensors"] <= 65_536
    assert planned(store, "STORE://tiny/").checkpoint.commit == plan.checkpoint.commit


def test_it_loads_as_the_folder_does_and_says_where_it_is_from(store: Store, tiny: Tiny) -> None:
    import torch

    loaded = loadkit.load("store://tiny", plugin_manager=manager_with(store), verify="full")
    folder = loadkit.load(tiny("mistral"))
    pairs = zip(loaded.model.state_dict().items(), folder.model.state_dict().items(), strict=True)
    assert all(one == other and torch.equal(a, b) for (one, a), (other, b) in pairs)
    assert loaded.model.name_or_path == loaded.processing_class.name_or_path == "store://tiny"
    text = "Where it comes from"
    assert loaded.processing_class(text).input_ids == folder.processing_class(text).input_ids


def test_the_second_load_reads_nothing_but_whether_it_changed(store: Store) -> None:
    manager = manager_with(store)
    loadkit.load("store://tiny", plugin_manager=manager)
    store.read.clear()
    loadkit.load("store://tiny", plugin_manager=manager)
    assert store.read == {}


@pytest.mark.parametrize("how", ["HF_HUB_OFFLINE", "local_files_only"])
def test_offline_a_copy_is_used(store: Store, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    first = loadkit.load("store://tiny", plugin_manager=manager_with(store))
    store.opened.clear()
    options = {"local_files_only": True} if how == "local_files_only" else {}
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", not options)
    again = loadkit.load("store://tiny", plugin_manager=manager_with(store), **options)
    assert again.plan.checkpoint == first.plan.checkpoint
    assert refused(store, "store://other", **options)[0][0] == "offline-not-cached"
    assert store.opened == []


def test_offline_what_was_only_planned_isnt_there(store: Store) -> None:
    planned(store)
    ((code, message),) = refused(store, local_files_only=True)
    assert (code, "model.safetensors" in message) == ("offline-not-cached", True)


def test_a_changed_object_is_refused_while_loading(store: Store) -> None:
    manager = manager_with(store)
    plan = loadkit.plan("store://tiny", plugin_manager=manager)
    weights = store.folders["tiny"] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x07")
    with pytest.raises(LoadError, match="source-changed"):
        loadkit.load(plan, plugin_manager=manager)
    commit = loadkit.load("store://tiny", plugin_manager=manager).plan.checkpoint.commit
    assert commit != plan.checkpoint.commit


def test_a_change_while_it_is_fetched_is_noticed(store: Store) -> None:
    store.checksums = False
    manager = manager_with(store)
    plan = loadkit.plan("store://tiny", plugin_manager=manager)
    weights = store.folders["tiny"] / "model.safetensors"

    def touched(name: str, start: int) -> None:
        if name == "model.safetensors":
            os.utime(weights, ns=(1, 1))

    store.before = touched
    with pytest.raises(LoadError, match="source-changed"):
        loadkit.load(plan, plugin_manager=manager)
    assert not list(copy_folder("store://tiny").rglob("model.safetensors"))


def test_the_planned_state_is_loaded_again_from_its_copy(store: Store) -> None:
    manager = manager_with(store)
    loaded = loadkit.load("store://tiny", plugin_manager=manager)
    weights = store.folders["tiny"] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x07")
    commit = loaded.plan.checkpoint.commit
    assert (
        loadkit.load("store://tiny", revision=commit, plugin_manager=manager).plan.checkpoint.commit == commit
    )
    assert loadkit.load(loaded.plan, plugin_manager=manager).plan is loaded.plan
    assert refused(store, revision="0" * 40)[0][0] == "source-changed"
    assert refused(store, revision="v2")[0][0] == "no-such-revision"


def test_a_download_goes_on_where_it_broke_off(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loadkit.schema.sources.CHUNK", 100_000)
    manager = manager_with(store)
    plan = loadkit.plan("store://tiny", plugin_manager=manager)
    store.before = lambda name, start: ConnectionResetError("gone") if start >= 200_000 else None
    with pytest.raises(LoadError, match="failed in stream: ConnectionResetError: gone"):
        loadkit.load(plan, plugin_manager=manager)
    store.read.clear()
    store.before = lambda name, start: None
    loadkit.load(plan, plugin_manager=manager)
    size = (store.folders["tiny"] / "model.safetensors").stat().st_size
    assert store.read["model.safetensors"] == size - 200_000


def test_bytes_that_arrive_damaged_are_refused(store: Store) -> None:
    class Flipping(FolderSource):
        def read_range(self, name: str, start: int, stop: int) -> bytes:
            found = super().read_range(name, start, stop)
            return found[:-1] + b"\x07" if stop == self.files[name].size and "safe" in name else found

    store.made = lambda source: Flipping(source._folder, store)
    with pytest.raises(LoadError, match="damaged-download"):
        loadkit.load("store://tiny", plugin_manager=manager_with(store))
    assert not list(copy_folder("store://tiny").rglob("model.safetensors"))
