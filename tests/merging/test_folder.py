"""The folder is whole or isn't there, has all that a load needs, and says what it was made of."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash

import loadkit
from loadkit.cli import main
from loadkit.merging import merge as merging
from loadkit.merging import writer
from loadkit.merging.arithmetic import RowMerge
from loadkit.testing.checkpoints import make_adapter

Tiny = Callable[..., Path]


@pytest.fixture
def adapter(tiny: Tiny, tmp_path: Path) -> Path:
    return make_adapter(tmp_path / "work" / "adapter", tiny("mistral"))


def alone(tmp_path: Path) -> bool:
    """Whether the adapter is all that there is: nothing was left by what failed."""
    return sorted(path.name for path in (tmp_path / "work").iterdir()) == ["adapter"]


def test_a_full_disk_leaves_nothing(adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written, real = 0, os.pwrite

    def full(place: int, piece: Any, at: int) -> int:
        nonlocal written
        written += len(piece)
        if written > 100_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(place, piece, at)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(loadkit.LoadError, match="No space left"):
        loadkit.merge(adapter, tmp_path / "work" / "out")
    assert alone(tmp_path)


def test_what_isnt_as_it_was_worked_out_is_found(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = writer.Writer.write

    def damaged(self: Any, file: Any, path: Path) -> Any:
        sums = real(self, file, path)
        with path.open("r+b") as stream:
            stream.seek(-3, os.SEEK_END)
            byte = stream.read(1)
            stream.seek(-1, os.SEEK_CUR)
            stream.write(bytes([byte[0] ^ 1]))
        return sums

    monkeypatch.setattr(writer.Writer, "write", damaged)
    with pytest.raises(loadkit.AuditError, match=r"(?s)merged, but .* isn't on the disk as it was written"):
        loadkit.merge(adapter, tmp_path / "work" / "out")
    assert alone(tmp_path)


@pytest.mark.parametrize("wrong", ["scale", "rows", "nothing"])
def test_a_wrong_delta_is_found(
    wrong: str, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = RowMerge.__call__

    def other(self: RowMerge, weight: Any, start: int, stop: int) -> Any:
        if wrong == "scale":
            self.scaling *= 1.02
        if wrong == "nothing":
            return weight[start:stop].float()
        made = real(self, weight, start, stop)
        return made.roll(1, 0) if wrong == "rows" else made

    monkeypatch.setattr(RowMerge, "__call__", other)
    with pytest.raises(loadkit.AuditError, match="isn't its base and its delta"):
        loadkit.merge(adapter, tmp_path / "work" / "out")
    assert alone(tmp_path)


def test_a_result_that_its_dtype_cant_hold(tiny: Tiny, tmp_path: Path) -> None:
    base = tiny("mistral")
    adapter = make_adapter(tmp_path / "work" / "adapter", base)
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lora_alpha": 1e8}))
    with pytest.raises(loadkit.LoadError, match="isn't finite in F16"):
        loadkit.merge(adapter, tmp_path / "work" / "out", dtype="float16")
    assert alone(tmp_path)
    loadkit.merge(adapter, tmp_path / "work" / "out", dtype="float32")


def test_a_base_that_changes_meanwhile(
    adapter: Path, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = Path(shutil.copytree(tiny("mistral"), tmp_path / "base"))
    real = merging._write

    def changing(*about: Any) -> Any:
        os.utime(base / "model.safetensors", (1, 1))
        return real(*about)

    monkeypatch.setattr(merging, "_write", changing)
    with pytest.raises(loadkit.LoadError, match="changed while they were read"):
        loadkit.merge(adapter, tmp_path / "work" / "out", base=base, check_adapter_base=False)
    assert alone(tmp_path)


def slowly(adapter: Path, out: Path, started: int) -> None:
    """Merge in a process of its own that tells when it writes, and then takes very long."""
    real = os.pwrite

    def waiting(place: int, piece: Any, at: int) -> int:
        os.write(started, b".")
        time.sleep(60)
        return real(place, piece, at)

    os.pwrite = waiting
    loadkit.merge(adapter, out)


def test_a_killed_merge_leaves_no_folder_of_that_name(adapter: Path, tmp_path: Path) -> None:
    out, (heard, started) = tmp_path / "work" / "out", os.pipe()
    process = multiprocessing.get_context("fork").Process(target=slowly, args=(adapter, out, started))
    process.start()
    try:
        assert os.read(heard, 1) == b"."
        with pytest.raises(loadkit.LoadError, match="another process is writing"):
            loadkit.merge(adapter, out)
    finally:
        process.kill()
        process.join()
    assert not out.exists()
    assert (tmp_path / "work" / ".out.loadkit-merge").is_dir()
    loadkit.merge(adapter, out)
    assert not (tmp_path / "work" / ".out.loadkit-merge").exists()


def test_somebody_elses_folder_in_the_way_stays(adapter: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "work" / ".out.loadkit-merge"
    theirs.mkdir()
    (theirs / "precious").touch()
    with pytest.raises(loadkit.LoadError, match="loadkit didn't make it"):
        loadkit.merge(adapter, tmp_path / "work" / "out")
    assert (theirs / "precious").is_file()


def test_the_manifest_says_what_it_was_made_of(adapter: Path, tiny: Tiny, tmp_path: Path) -> None:
    base, out = tiny("mistral"), tmp_path / "work" / "out"
    done = loadkit.merge(adapter, out)
    manifest = loadkit.Manifest.from_json((out / "loadkit-manifest.json").read_bytes())
    assert manifest == done.manifest
    assert manifest.plan.adapter is not None
    assert manifest.plan.adapter.source == str(adapter)
    assert manifest.plan.checkpoint.location == str(base)
    weights = (adapter / "adapter_model.safetensors").read_bytes()
    assert (
        manifest.files["adapter default/adapter_model.safetensors"].sha256
        == hashlib.sha256(weights).hexdigest()
    )
    whole = (base / "model.safetensors").read_bytes()
    assert manifest.files["checkpoint/model.safetensors"].xxh3 == xxhash.xxh3_128_hexdigest(whole)
    assert set(manifest.written) == {path.name for path in out.iterdir()} - {"loadkit-manifest.json"}
    for name, proof in manifest.written.items():
        content = (out / name).read_bytes()
        assert proof.size == len(content)
        expected = {"sha256": proof.sha256, "xxh3": proof.xxh3}
        found = {"sha256": hashlib.sha256(content).hexdigest(), "xxh3": xxhash.xxh3_128_hexdigest(content)}
        assert {k: v for k, v in found.items() if expected[k]} == {k: v for k, v in expected.items() if v}
    hashed = loadkit.merge(adapter, tmp_path / "again", sha256=True).manifest
    assert all(proof.sha256 for proof in (*hashed.files.values(), *hashed.written.values()))


def test_the_adapters_tokenizer_and_the_bases_configs_come_along(
    adapter: Path, tiny: Tiny, tmp_path: Path
) -> None:
    base, out = tiny("mistral"), tmp_path / "work" / "out"
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (base / name).exists():
            shutil.copyfile(base / name, adapter / name)
    (adapter / "chat_template.jinja").write_text("{{ 'the adapters own' }}")
    (adapter / "trainer_state.json").write_text("{}")
    loadkit.merge(adapter, out)
    assert (out / "chat_template.jinja").read_text() == "{{ 'the adapters own' }}"
    assert not (out / "trainer_state.json").exists()
    assert not (out / "adapter_config.json").exists()
    assert (out / "config.json").read_bytes() == (base / "config.json").read_bytes()
    loaded = loadkit.load(out, verify="full")
    assert not loaded.report.findings
    assert loaded.plan.adapters is None
    assert "the adapters own" in loaded.tokenizer.chat_template


def test_the_commands(adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "work" / "out"
    with pytest.raises(SystemExit) as done:
        main(["merge", str(adapter), str(out), "--json", "--dtype", "float32"])
    assert done.value.code == 0
    told = json.loads(capsys.readouterr().out)
    assert told["folder"] == str(out)
    assert set(told["tensors"].values()) == {"merged", "copied"}
    with pytest.raises(SystemExit) as done:
        main(["merge", str(adapter), str(out)])
    assert done.value.code == 3
    assert "out-exists" in capsys.readouterr().err
    with pytest.raises(SystemExit) as done:
        main(["save", "--merged", str(adapter), str(tmp_path / "two")])
    assert done.value.code == 0
    assert "14 merged, 7 copied" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(SystemExit) as done:
        main(["save", str(tmp_path / "two"), str(tmp_path / "three")])
    assert done.value.code == 0
    assert (tmp_path / "three" / "loadkit-manifest.json").is_file()
    loaded = loadkit.load(tmp_path / "three").model.state_dict()
    first = loadkit.load(tmp_path / "two").model.state_dict()
    assert all(torch.equal(loaded[name], first[name]) for name in first)


def test_bytes_are_told_as_they_are_written(adapter: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    loadkit.merge(adapter, tmp_path / "work" / "out", wrote=lambda done, total: told.append((done, total)))
    assert told
    assert told == sorted(told)
    assert len({total for _, total in told}) == 1


def test_torch_has_its_threads_again(adapter: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    loadkit.merge(adapter, tmp_path / "work" / "out")
    assert torch.get_num_threads() == before
