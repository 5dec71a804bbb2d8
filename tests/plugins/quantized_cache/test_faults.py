"""Whatever happens to the cache, the load gets its model; and nobody ever sees half an entry."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from forks import Forks
from quantized_loads import load, same, told

import loadkit
from loadkit import Loaded
from loadkit.cache.seals import seal
from loadkit.plugins import Entries, Entry, Record
from loadkit_plugins.quantized_cache.tensor_file import TensorFile
from loadkit_plugins.quantized_cache.writer import WEIGHTS, finish_writing

Tiny = Callable[..., Path]
Run = Callable[..., subprocess.CompletedProcess[str]]
PROCESSES = Path(__file__).with_name("processes.py")


@pytest.fixture
def run(forks: Forks) -> Run:
    """Runs `processes.py`, whose folder for results is made where it isn't there."""

    def running(
        way: str, folder: Path, out: Path, count: int = 1, **environ: str
    ) -> subprocess.CompletedProcess[str]:
        out.mkdir(exist_ok=True)
        return forks.run(PROCESSES, way, folder, out, count, environ={"OMP_NUM_THREADS": "1", **environ})

    return running


def results(out: Path) -> list[dict[str, str]]:
    assert not list(out.glob("*.error")), [p.read_text() for p in out.glob("*.error")]
    return [json.loads(path.read_text()) for path in sorted(out.glob("*.json"))]


# Damage


def flip(entry: Entry) -> None:
    path = Path(entry.folder) / WEIGHTS
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def flip_header(entry: Entry) -> None:
    path = Path(entry.folder) / WEIGHTS
    path.write_bytes(path.read_bytes().replace(b'"U8"', b'"I8"', 1))


def cut(entry: Entry) -> None:
    path = Path(entry.folder) / WEIGHTS
    path.write_bytes(path.read_bytes()[:-10])


def swap_config(entry: Entry) -> None:
    path = Path(entry.folder) / "config.json"
    path.write_bytes(path.read_bytes().replace(b"nf4", b"fp4"))


def forge_record(entry: Entry) -> None:
    path = Path(entry.folder) / "entry.json"
    record = json.loads(path.read_text())
    record["more"]["loading"] = "nonsense"
    path.write_text(json.dumps(record))


@pytest.mark.parametrize("harm", [flip, flip_header, cut, swap_config, forge_record])
def test_a_damaged_entry_is_dropped_and_made_again(
    tiny: Tiny, entries: Entries, harm: Callable[[Entry], None]
) -> None:
    plain = load(tiny("mistral"), quantized_cache=False)
    load(tiny("mistral"))
    (entry,) = entries
    harm(entry)
    after = load(tiny("mistral"))
    assert same(after, plain)
    assert "from the cache" not in told(after)
    (mended,) = entries
    assert mended.damage() == ""
    again = load(tiny("mistral"))
    assert "from the cache" in told(again)
    assert same(again, plain)


def test_an_entry_that_loads_otherwise_isnt_trusted_nor_made_again(tiny: Tiny, entries: Entries) -> None:
    """A transformers that reads its own files another way, say: checksums hold, and the model isn't the
    same."""
    load(tiny("mistral"))
    (entry,) = entries
    path = Path(entry.folder) / "entry.json"
    record = msgspec.json.decode(path.read_bytes(), type=Record)
    record.more["shape"] = "0"
    path.write_bytes(seal(record))
    after = load(tiny("mistral"))
    assert same(after, load(tiny("mistral"), quantized_cache=False))
    assert "doesn't load as it was" in told(after)
    assert list(entries) == []
    assert "not cached: what is stored" in str(loadkit.plan(tiny("mistral"), "inference-4bit"))


def test_a_model_that_changes_while_it_is_written_isnt_kept(
    tiny: Tiny, entries: Entries, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, held, go = TensorFile.append, [], threading.Event()

    def late(file: TensorFile, content: Any) -> Any:
        held.append(content)
        assert go.wait(60)
        return real(file, content)

    monkeypatch.setattr(TensorFile, "append", late)
    loaded = loadkit.load(tiny("mistral"), "inference-4bit")
    with torch.no_grad():
        loaded.model.model.norm.weight.add_(1)
    go.set()
    finish_writing()
    assert held
    assert list(entries) == []


# Disks


def test_a_disk_without_room_is_seen_before(
    tiny: Tiny, entries: Entries, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOADKIT_CACHE_MAX", "1kB")
    first = load(tiny("mistral"))
    assert "LOADKIT_CACHE_MAX" in told(first)
    assert list(entries) == []
    assert entries.broken() == []


def test_a_quota_that_ends_the_writing_costs_the_entry_only(
    tiny: Tiny, entries: Entries, tmp_path: Path, run: Run
) -> None:
    """A limit on the size of files stands for a full disk: the writing fails in the middle."""
    done = run("limited", tiny("mistral"), tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "kept for the next load" in results(tmp_path / "out")[0]["told"]
    assert list(entries) == []
    assert entries.broken() == []
    assert "File too large" in str(
        loadkit.plan(tiny("mistral"), "inference-4bit", bnb_4bit_use_double_quant=True)
    )


def test_a_folder_that_cant_be_written_costs_nothing(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("LOADKIT_CACHE", str(tmp_path / "file"))
    loaded = load(tiny("mistral"))
    assert "can't be written" in told(loaded)


def test_a_cache_that_is_read_only_serves_what_it_has(
    tiny: Tiny, entries: Entries, tmp_path: Path, run: Run
) -> None:
    """Permission denied for writing: what is there is read, and what it lacks is quantized."""
    load(tiny("mistral"), bnb_4bit_use_double_quant=True)
    for path in (entries.root, *entries.root.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        for folder, expected in ((tiny("mistral"), "from the cache"), (tiny("qwen2"), "can't be written")):
            done = run("mortal", folder, tmp_path / "out")
            assert done.returncode == 0, done.stderr[-2000:]
            assert expected in results(tmp_path / "out")[0]["told"]
    finally:
        for path in (entries.root, *entries.root.rglob("*")):
            path.chmod(0o755)


# The end of a program


def test_a_program_that_ends_right_after_the_load_leaves_the_entry(tiny: Tiny, entries: Entries) -> None:
    code = f"import loadkit; loadkit.load({str(tiny('mistral'))!r}, 'inference-4bit')"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=300)
    (entry,) = entries
    assert entry.damage() == ""
    assert "from the cache" in told(load(tiny("mistral")))


@pytest.mark.parametrize("started", [0, 1])
def test_where_no_thread_can_be_started_nothing_is_kept(
    tiny: Tiny, entries: Entries, monkeypatch: pytest.MonkeyPatch, started: int
) -> None:
    """Python starts none once it is about to end: the writing gives up whole, and nobody waits for the other
    half."""
    real, left = ThreadPoolExecutor.submit, [started]

    def submit(pool: ThreadPoolExecutor, call: Callable[..., Any], *given: Any) -> Any:
        if call.__module__ == "loadkit_plugins.quantized_cache.writer":
            if not left[0]:
                raise RuntimeError("can't start new thread")
            left[0] -= 1
        return real(pool, call, *given)

    with monkeypatch.context() as patch:
        patch.setattr(ThreadPoolExecutor, "submit", submit)
        first = load(tiny("mistral"))
    assert "not kept: RuntimeError" in told(first)
    assert list(entries) == []
    begun = [thread for thread in threading.enumerate() if thread.name.startswith("loadkit-cache")]
    for thread in begun:
        thread.join(60)
    assert not any(thread.is_alive() for thread in begun)
    assert same(first, load(tiny("mistral"), quantized_cache=False))


def test_where_priorities_cant_be_set_the_entry_is_kept(
    tiny: Tiny, entries: Entries, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a sandbox, say. Were it to fail the writing, its lock would never be given back."""

    def forbidden(*_: int) -> None:
        raise PermissionError("setpriority")

    monkeypatch.setattr("os.setpriority", forbidden)
    load(tiny("mistral"))
    (entry,) = entries
    assert entry.damage() == ""


# Several at once


def test_pruning_meanwhile_harms_no_load(tiny: Tiny, entries: Entries) -> None:
    plain = load(tiny("mistral"), quantized_cache=False)
    stop = threading.Event()

    def prune() -> None:
        while not stop.is_set():
            Entries().prune(0)

    pruner = threading.Thread(target=prune)
    pruner.start()
    try:
        for _ in range(15):
            assert same(loadkit.load(tiny("mistral"), "inference-4bit"), plain)
    finally:
        stop.set()
        pruner.join()
        finish_writing()
    assert all(entry.damage() == "" for entry in entries)


def test_threads_of_one_process_share_the_work(tiny: Tiny, entries: Entries) -> None:
    folder, loads = tiny("mistral"), list[Loaded]()
    plain = load(folder, quantized_cache=False)  # the libraries' imports don't stand several threads
    threads = [
        threading.Thread(target=lambda: loads.append(loadkit.load(folder, "inference-4bit")))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    finish_writing()
    assert len(loads) == 3
    assert sorted("kept" in told(one) for one in loads) == [False, False, True]
    assert all(same(one, plain) for one in loads)


def test_eight_processes_quantize_once(tiny: Tiny, entries: Entries, tmp_path: Path, run: Run) -> None:
    done = run("together", tiny("mistral"), tmp_path / "out", 8)
    assert done.returncode == 0, done.stderr
    found = results(tmp_path / "out")
    assert len(found) == 8
    assert len({one["bits"] for one in found}) == 1
    assert sorted("kept" in one["told"] for one in found) == [False] * 7 + [True]
    assert sum("from the cache" in one["told"] for one in found) == 7
    assert len(list(entries)) == 1


@pytest.mark.parametrize("count", [6, pytest.param(100, marks=pytest.mark.slow)])
def test_a_load_killed_at_any_moment_leaves_nothing_or_all(
    tiny: Tiny, entries: Entries, tmp_path: Path, run: Run, count: int
) -> None:
    folder = tiny("mistral", hidden_size=512) if count > 50 else tiny("mistral")
    out = tmp_path / "out"
    done = run("killed", folder, out, count)
    assert done.returncode == 0, done.stderr
    seen = json.loads((out / "seen.json").read_text())
    assert len(seen) == count
    assert all(not fault for one in seen for fault in one["damage"])
    whole, after, again = (json.loads((out / f"{n}.json").read_text()) for n in ("whole", "after", "again"))
    assert whole["bits"] == after["bits"] == again["bits"]
    assert "kept" in after["told"]  # the killed ones' remains are in nobody's way
    assert "from the cache" in again["told"]
    assert entries.broken() == []


@pytest.mark.parametrize(
    ("way", "step"),
    [
        ("touched", 17),
        ("written", 23),
        *(pytest.param(w, 1, marks=pytest.mark.slow) for w in ("touched", "written")),
    ],
)
def test_a_load_killed_as_it_touches_the_cache_leaves_nothing_or_all(
    tiny: Tiny, entries: Entries, tmp_path: Path, run: Run, way: str, step: int
) -> None:
    """At every file that is opened, made, renamed or removed, and within every tensor that is written, one
    load after the other in what is left."""
    mine = entries.root / "mine"
    mine.mkdir(parents=True)
    done = run(way, tiny("mistral"), tmp_path / "out", step)
    assert done.returncode == 0, done.stderr
    seen = json.loads((tmp_path / "out" / "seen.json").read_text())
    assert seen["moments"] > 30
    assert (seen["faults"], seen["broken"], entries.strangers()) == ([], [], ["mine"])
    after, again = (json.loads((tmp_path / "out" / f"{n}.json").read_text()) for n in ("after", "again"))
    assert after["bits"] == again["bits"]
    assert "kept" in after["told"]
    assert "from the cache" in again["told"]
