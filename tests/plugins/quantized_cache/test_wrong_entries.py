"""Entries of other weights, files that move on meanwhile, and failures that say nothing of an entry."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
import transformers
from quantized_loads import load, same, told
from safetensors.torch import load_file, save_file

import loadkit
from loadkit.cache.checksums import file_checksums
from loadkit.cache.seals import seal
from loadkit.plugins import Entries, Record
from loadkit_plugins.quantized_cache.writer import WEIGHTS, finish_writing

Tiny = Callable[..., Path]


def codes(loaded: loadkit.Loaded) -> set[str]:
    return {finding.code for finding in loaded.report.findings}


def other_weights(folder: Path, target: Path) -> Path:
    """The same checkpoint with other values in every layer."""
    shutil.copytree(folder, target)
    state = {name: tensor + 1 for name, tensor in load_file(target / WEIGHTS).items()}
    save_file(state, target / WEIGHTS, metadata={"format": "pt"})
    return target


def test_a_link_that_moves_on_during_the_load_leaves_no_entry(
    tiny: Tiny, entries: Entries, tmp_path: Path
) -> None:
    old = shutil.copytree(tiny("mistral"), tmp_path / "old")
    new, current = other_weights(old, tmp_path / "new"), tmp_path / "current"
    current.symlink_to(old)

    def moves(said: str) -> None:
        if said.startswith("loading Mistral"):
            current.unlink()
            current.symlink_to(new)

    loaded = load(current, progress=moves, strict=False)
    assert "checkpoint-changed" in codes(loaded)
    assert list(entries) == []
    assert same(load(old), load(old, quantized_cache=False))
    assert "checkpoint-changed" not in codes(load(current))


def test_a_folder_that_is_written_during_the_load_leaves_no_entry(
    tiny: Tiny, entries: Entries, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny("mistral"), tmp_path / "run")

    def saves(said: str) -> None:
        if said.startswith("loading Mistral"):
            (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")

    assert "checkpoint-changed" in codes(load(folder, progress=saves))
    assert list(entries) == []


def poison(entries: Entries, other: Path) -> None:
    """Give the only entry another base's quantized weights, with all its checksums right."""
    (entry,) = entries
    record = Path(entry.folder) / "entry.json"
    written = msgspec.json.decode(record.read_bytes(), type=Record)
    state = loadkit.load(other, "inference-4bit", quantized_cache=False).model.state_dict()
    names = load_file(Path(entry.folder) / WEIGHTS).keys()
    path = Path(entry.folder) / WEIGHTS
    save_file({name: state[name] for name in names}, path, metadata={"format": "pt"})
    kept = {name: value for name, value in written.digests.items() if name.endswith(".json")}
    digests = kept | {name: value for name, value in written.digests.items() if name == "made-by-loadkit"}
    made = msgspec.structs.replace(
        written,
        files={**written.files, WEIGHTS: path.stat().st_size},
        digests={**digests, **file_checksums(path)},
    )
    record.write_bytes(seal(made))


def test_an_entry_of_other_weights_is_dropped_and_made_anew_aloud(
    tiny: Tiny, entries: Entries, tmp_path: Path
) -> None:
    plain = load(tiny("mistral"), quantized_cache=False)
    load(tiny("mistral"))
    poison(entries, other_weights(tiny("mistral"), tmp_path / "other"))
    after = load(tiny("mistral"))
    assert same(after, plain)
    assert "the entry was wrong" in told(after)
    assert "tensors don't hold what the files have" in told(after)
    assert "kept for the next load" in told(after)
    assert "other-values" not in codes(after)
    again = load(tiny("mistral"))
    assert "from the cache" in told(again)
    assert same(again, plain)


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException, *, times: int = 99) -> None:
    """Have `from_pretrained` raise, so many times."""
    left, real = [times], transformers.AutoModelForCausalLM.from_pretrained

    def fails(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            raise error
        return real(*args, **kwargs)

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", fails)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 17179869184 bytes"),
        ImportError("cannot import name 'escape' from 'html'"),
        KeyboardInterrupt(),
    ],
)
def test_a_failure_that_says_nothing_of_the_entry_leaves_it(
    tiny: Tiny, entries: Entries, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    load(tiny("mistral"))
    with monkeypatch.context() as patch:
        failing(patch, error)
        with pytest.raises((loadkit.LoadError, KeyboardInterrupt)):
            load(tiny("mistral"))
    assert list(entries.refusals) == []
    assert "from the cache" in told(load(tiny("mistral")))


def test_a_disk_that_fails_twice_costs_one_quantizing(
    tiny: Tiny, entries: Entries, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(tiny("mistral"))
    with monkeypatch.context() as patch:
        failing(patch, OSError(errno.EIO, "Input/output error"), times=2)  # tried again once
        after = load(tiny("mistral"))
    assert "couldn't be read ([Errno 5]" in told(after)
    assert list(entries.refusals) == []
    assert "from the cache" in told(load(tiny("mistral")))


def test_an_entry_that_cant_be_loaded_is_left_out_for_an_hour_not_for_good(
    tiny: Tiny, entries: Entries, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(tiny("mistral"))
    with monkeypatch.context() as patch:
        failing(patch, ValueError("something is odd"), times=1)
        load(tiny("mistral"))
    ((_, refusal),) = entries.refusals
    assert not refusal.lasting
    assert "something is odd" in refusal.reason
    assert list(entries) == []


def test_what_doesnt_hold_what_the_files_have_isnt_kept(
    tiny: Tiny, entries: Entries, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = transformers.AutoModelForCausalLM.from_pretrained

    def harms(*args: Any, **kwargs: Any) -> Any:
        model, info = real(*args, **kwargs)
        with torch.no_grad():
            model.model.embed_tokens.weight.add_(1)
        return model, info

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", harms)
    with pytest.raises(loadkit.AuditError, match="don't hold what the files have"):
        loadkit.load(tiny("mistral"), "inference-4bit")
    finish_writing()
    assert list(entries) == []
