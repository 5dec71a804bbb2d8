"""Manifests: a load is taken down, loaded again as it was, or what differs is said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch
from hub_server import HubServer
from model_outputs import batch, logits

import loadkit
from loadkit.cli import main
from loadkit.manifest.manifest import library_versions
from loadkit.testing.checkpoints import make_adapter

Tiny = Callable[..., Path]


def test_a_load_is_taken_down_and_loaded_again(tiny: Tiny, tmp_path: Path) -> None:
    loaded = loadkit.load(tiny("mistral"), "inference-4bit")
    manifest = loaded.manifest()
    assert {"checkpoint/model.safetensors", "checkpoint/config.json", "checkpoint/tokenizer.json"} <= set(
        manifest.files
    )
    assert manifest.libraries["torch"].startswith("2.")
    assert manifest.plan == loaded.plan
    assert manifest.workarounds
    path = tmp_path / "manifest.json"
    path.write_text(manifest.to_json())
    assert loadkit.Manifest.from_json(path.read_text()) == manifest
    again = loadkit.load(replay=path)
    assert again.plan == loaded.plan
    inputs = batch(loaded)
    assert torch.equal(logits(again.model, inputs), logits(loaded.model, inputs))
    assert loadkit.differences(again.manifest(), manifest) == []


def test_what_differs_in_the_files_is_said(tiny: Tiny, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny("mistral"), tmp_path / "m"))
    manifest = loadkit.load(folder).manifest()
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(bytes(data))
    with pytest.raises(loadkit.ReplayError) as caught:
        loadkit.load(replay=manifest)
    assert [d.what for d in caught.value.differences] == ["file checkpoint/model.safetensors"]
    assert "sha256" in str(caught.value)
    with pytest.warns(loadkit.ReplayWarning, match="model.safetensors"):
        loadkit.load(replay=manifest, strict=False)
    shutil.rmtree(folder)
    with pytest.raises(loadkit.ReplayError, match="no-such-folder"):
        loadkit.load(replay=manifest)


def test_what_differs_in_the_decisions_is_said(tiny: Tiny, tmp_path: Path) -> None:
    profile = tmp_path / "mine.toml"
    profile.write_text('description = "x"\n[options]\ndtype = "float32"\n')
    manifest = loadkit.load(tiny("mistral"), str(profile)).manifest()
    profile.write_text('description = "x"\n[options]\ndtype = "bfloat16"\n')
    with pytest.raises(loadkit.ReplayError, match="decision dtype: float32 → bfloat16"):
        loadkit.load(replay=manifest)


def test_other_versions_are_told_and_dont_stop_it(tiny: Tiny) -> None:
    manifest = loadkit.load(tiny("mistral")).manifest()
    older = msgspec.structs.replace(manifest, libraries={**manifest.libraries, "torch": "2.0.0"})
    with pytest.warns(loadkit.ReplayWarning, match=r"library torch: 2\.0\.0 → 2\."):
        loadkit.load(replay=older)


def test_adapters_and_commits_are_taken_down(hub: HubServer, tiny: Tiny, tmp_path: Path) -> None:
    commit = hub.add("owner/base", tiny("mistral"))
    adapter = make_adapter(tmp_path / "adapter", tiny("mistral"))
    loaded = loadkit.load("owner/base", adapter=str(adapter), check_adapter_base=False)
    manifest = loaded.manifest()
    assert manifest.plan.checkpoint.commit == commit
    assert "adapter default/adapter_model.safetensors" in manifest.files
    assert "checkpoint/model.safetensors" in manifest.files
    other = Path(shutil.copytree(tiny("mistral"), tmp_path / "other"))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "rope_theta": 5.0}))
    assert hub.add("owner/base", other) != commit  # the branch moves on; the replay doesn't
    again = loadkit.load(replay=manifest)
    assert again.plan.checkpoint.commit == commit
    inputs = batch(loaded)
    assert torch.equal(logits(again.model, inputs), logits(loaded.model, inputs))


def test_what_isnt_a_manifest_is_told(tiny: Tiny, tmp_path: Path) -> None:
    plan = loadkit.plan(tiny("mistral"))
    (tmp_path / "plan.json").write_text(plan.to_json())
    (tmp_path / "x.json").write_text("{")
    (tmp_path / "y.json").write_text('{"plan": 5}')
    for name, words in (
        ("plan.json", "holds a plan"),
        ("x.json", "isn't JSON"),
        ("y.json", "neither"),
        ("z", "can't be read"),
    ):
        with pytest.raises(loadkit.LoadkitError, match=words):
            loadkit.load(replay=tmp_path / name)
    with pytest.raises(loadkit.LoadkitError, match="leave profile, dtype out"):
        loadkit.load(replay=tmp_path / "x.json", profile="qlora", dtype="float32")


def test_the_command_line_writes_replays_and_compares(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    main(["load", str(tiny("mistral")), "--manifest", str(one)], standalone_mode=False)
    main(["load", "--replay", str(one), "--manifest", str(two)], standalone_mode=False)
    assert "what was planned is what was loaded" in capsys.readouterr().out
    assert main(["diff", str(one), str(two)], standalone_mode=False) == 0
    assert "nothing differs" in capsys.readouterr().out
    main(["plan", str(tiny("mistral")), "-p", "qlora", "-o", str(two)], standalone_mode=False)
    capsys.readouterr()
    assert main(["diff", str(one), str(two)], standalone_mode=False) == 1
    out = capsys.readouterr().out
    assert "decision quantization" in out
    assert main(["diff", str(one), str(two), "--json"], standalone_mode=False) == 1
    assert any(d["what"] == "decision adapter" for d in json.loads(capsys.readouterr().out))


def test_a_manifest_has_what_plugins_did_and_depend_on(tiny: Tiny) -> None:
    loaded = loadkit.load(tiny("mistral"), "qlora")
    assert any("repacking" in line for line in loaded.manifest().workarounds)
    assert not any(
        "repacking" in line for line in loadkit.load(tiny("mistral"), "lora").manifest().workarounds
    )
    plugins = {**loaded.plan.plugins, "third": "pytest 9"}  # a distribution that is here, and needs others
    versions = library_versions(msgspec.structs.replace(loaded.plan, plugins=plugins))
    assert {"pytest", "pluggy", "torch"} <= set(versions)
    assert "pluggy" not in library_versions(loaded.plan)
