"""An address stands wherever a folder or a Hub id may: adapters, bases, merges, replays, caches, commands."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from stores import Store

import loadkit
from loadkit import PlanError
from loadkit.cli.main import main
from loadkit.facts.checkpoint.adapters import led_elsewhere
from loadkit.facts.checkpoint.folder import Folder
from loadkit.facts.checkpoint.references import is_reference, same_store, split_revision
from loadkit.facts.load_facts import fingerprint_of
from loadkit.hooks.manager import default_manager
from loadkit.testing.checkpoints import make_adapter

Tiny = Callable[..., Path]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # the copies alone: the index of transformers stays
    monkeypatch.setattr("loadkit.facts.stores.copies.cache_folder", lambda: tmp_path / "cache")


@pytest.fixture
def store(tiny: Tiny, tmp_path: Path) -> Iterator[Store]:
    """store://all/tiny and an adapter of it, store://all/song, for everybody in this process."""
    shutil.copytree(tiny("mistral"), tmp_path / "served")
    made = Store()
    song = adapter_of("store://all/tiny", tiny, tmp_path / "song")
    made.folders = {"all/tiny": tmp_path / "served", "all/song": song}
    default_manager().register(made, "a-store")
    yield made
    default_manager().unregister("a-store")


def adapter_of(base: str, tiny: Tiny, target: Path) -> Path:
    folder = make_adapter(target, tiny("mistral"))
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": base}))
    return folder


@pytest.mark.filterwarnings(
    "ignore:Could not find a config file in store:UserWarning"
)  # PEFT 0.21 asks the Hub
def test_an_adapter_leads_to_its_base_in_the_same_store(store: Store, tmp_path: Path) -> None:
    loaded = loadkit.load("store://all/song")
    adapter = loaded.plan.adapter
    assert adapter is not None
    assert (loaded.plan.checkpoint.location, adapter.source) == ("store://all/tiny", "store://all/song")
    assert len(adapter.revision) == 40
    loaded.model.save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "store://all/tiny"
    assert loadkit.load(tmp_path / "saved").plan.checkpoint.location == "store://all/tiny"


def test_an_adapter_is_attached_by_its_address(store: Store, tiny: Tiny) -> None:
    loaded = loadkit.load("store://all/tiny", adapter="store://all/song")
    assert loaded.plan.adapter is not None
    assert loaded.plan.adapter.source == "store://all/song"
    assert not [p for p in loaded.plan.warnings if "adapter" in p.stage]


def test_a_strangers_adapter_sends_nobody_to_a_store(store: Store, tiny: Tiny, tmp_path: Path) -> None:
    store.folders["evil"] = adapter_of("http://169.254.169.254/latest", tiny, tmp_path / "evil")
    with pytest.raises(PlanError) as caught:
        loadkit.plan("store://evil")
    assert [p.code for p in caught.value.problems if p.severity == "error"] == ["base-elsewhere"]
    assert led_elsewhere(Folder(str(tmp_path)), "store://all/tiny") is None


def test_a_merge_reads_both_from_there(store: Store, tmp_path: Path) -> None:
    merged = loadkit.merge("store://all/song", tmp_path / "merged")
    assert loadkit.plan(merged.folder).model_class.model_class == "MistralForCausalLM"


def test_a_load_is_repeated_from_its_manifest(store: Store) -> None:
    manifest = loadkit.load("store://all/tiny").manifest()
    assert any(name.startswith("checkpoint/model.safetensors") for name in manifest.files)
    assert loadkit.load(replay=manifest).plan.checkpoint == manifest.plan.checkpoint
    plan = loadkit.Plan.from_json(manifest.plan.to_json())
    assert loadkit.load(plan).plan.checkpoint.kind == "store"


def test_what_tells_its_weights_from_others_is_the_commit(store: Store) -> None:
    first = fingerprint_of(loadkit.plan("store://all/tiny"))
    store.version = "2"
    assert fingerprint_of(loadkit.plan("store://all/tiny")) not in ("", first)


@pytest.mark.slow
def test_quantized_weights_are_kept_by_that(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LOADKIT_QUANTIZED_CACHE", "1")
    monkeypatch.setenv("LOADKIT_CACHE", str(tmp_path / "cache"))
    loadkit.load("store://all/tiny", "inference-4bit")
    plan = loadkit.plan("store://all/tiny", "inference-4bit")
    assert plan.shortcuts
    again = loadkit.load(plan)
    assert again.report.shortcuts
    assert again.model.name_or_path == "store://all/tiny"


def test_commands_take_it(store: Store) -> None:
    done = CliRunner().invoke(main, ["plan", "store://all/tiny", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["checkpoint"]["kind"] == "store"
    done = CliRunner().invoke(main, ["plan", "s3://bucket/x"])
    assert done.exit_code != 0
    assert "pip install loadkit-fsspec" in done.output


@pytest.mark.parametrize(
    ("source", "is_one"),
    [("s3://a/b", True), ("S3A://a", True), ("hf://a/b", False), ("https://hf.co/a/b", False), ("a/b", False), ("C:/a", False), ("./s3://a", False)],
)  # fmt: skip
def test_what_counts_as_an_address(source: str, is_one: bool) -> None:
    assert is_reference(source) is is_one
    assert not is_reference(Path(source))


def test_revisions_stand_behind_the_last_part() -> None:
    assert split_revision("s3://a/b@v1") == ("s3://a/b", "v1")
    assert split_revision("owner/name@v1") == ("owner/name", "v1")
    assert same_store("s3://a/b", "S3://a/c")
    assert not same_store("s3://a/b", "s3://b/b")
