"""The entry is written while the model is loading, and whatever the model then has is what is kept."""

from __future__ import annotations

import errno
import gc
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from quantized_loads import load, same, told
from safetensors import safe_open
from safetensors.torch import load_file

import loadkit
from loadkit.plugins import Entries, Record
from loadkit_plugins.quantized_cache import handover
from loadkit_plugins.quantized_cache.early_tensors import EarlyTensors
from loadkit_plugins.quantized_cache.entry import Cached
from loadkit_plugins.quantized_cache.model_state import state_of
from loadkit_plugins.quantized_cache.tensor_file import DTYPES, TensorFile, aligned, room_for
from loadkit_plugins.quantized_cache.writer import WEIGHTS, EntryWriting, finish_writing

Tiny = Callable[..., Path]
KEY = "a" * 32
LEAST = 2048


@pytest.fixture(autouse=True)
def nearly_all_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a tiny model has is written early too, but for code books."""
    monkeypatch.setattr(handover, "SMALL", LEAST)


@pytest.fixture
def restarts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How far the file had come each time that it was begun: [0] where what was written early was kept."""
    ends: list[int] = []
    real = TensorFile.restart

    def restart(file: TensorFile, room: int) -> None:
        ends.append(file.end)
        real(file, room)

    monkeypatch.setattr(TensorFile, "restart", restart)
    return ends


@pytest.fixture
def keeping(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[EntryWriting]]:
    """Every writing that has begun when the model is there; all that it was given is on the disk by then."""
    found: list[EntryWriting] = []
    real = Cached.keep

    def keep(cached: Cached, model: Any, loading: Any) -> None:
        if cached._early and cached._early.writing:
            found.append(cached._early.writing)
            settle(found[-1])
        real(cached, model, loading)

    monkeypatch.setattr(Cached, "keep", keep)
    yield found
    finish_writing()


def settle(writing: EntryWriting) -> None:
    """Wait until a writing has nothing to do."""
    deadline = time.monotonic() + 60
    while not writing._orders.empty() and writing.fault is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def left(entries: Entries) -> list[str]:
    """What is under the cache's folder but for locks and refusals."""
    return sorted(p.name for p in entries.root.iterdir() if p.is_dir())


def stored(entries: Entries) -> dict[str, torch.Tensor]:
    (entry,) = entries
    assert entry.damage() == ""
    return load_file(Path(entry.folder) / WEIGHTS)


def equal(first: dict[str, Any], second: dict[str, Any]) -> bool:
    def bits(tensor: Any) -> Any:
        return tensor.detach().reshape(-1).view(torch.uint8)

    return first.keys() == second.keys() and all(
        (first[n].dtype, first[n].shape) == (second[n].dtype, second[n].shape)
        and torch.equal(bits(first[n]), bits(second[n]))
        for n in first
    )


@pytest.mark.parametrize("profile", ["qlora", "inference-8bit", "inference-4bit"])
@pytest.mark.parametrize("arch", ["mistral", "gemma3", "mixtral"])
def test_nearly_all_is_written_before_the_model_is_there(
    tiny: Tiny, entries: Entries, keeping: list[EntryWriting], restarts: list[int], arch: str, profile: str
) -> None:
    loaded = loadkit.load(tiny(arch), profile, adapter=False)
    finish_writing()
    (writing,) = keeping
    state = state_of(loaded.model)
    early = [tensor.nbytes for tensor in state.values() if tensor.nbytes >= LEAST]
    assert writing.bytes >= sum(early) > 0.5 * sum(tensor.nbytes for tensor in state.values())
    assert restarts == [0]
    assert profile == "qlora" or equal(stored(entries), state)  # its norms are in float32 by now
    again = loadkit.load(tiny(arch), profile, adapter=False)
    assert "from the cache" in told(again)
    assert same(again, loaded)


def test_plain_safetensors_reads_the_file_and_its_tensors_lie_where_their_dtypes_allow(
    tiny: Tiny, entries: Entries, keeping: list[EntryWriting]
) -> None:
    load(tiny("mistral"))
    assert keeping
    (entry,) = entries
    path = Path(entry.folder) / WEIGHTS
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}
        for name in file.keys():  # noqa: SIM118  (it isn't a dict)
            assert file.get_tensor(name).numel() or True
    content = path.read_bytes()
    header = loadkit_header(content)
    body = 8 + int.from_bytes(content[:8], "little")
    assert body % 64 == 0
    places = sorted((d["data_offsets"], d["dtype"]) for n, d in header.items() if n != "__metadata__")
    sizes = {"F32": 4, "BF16": 2, "F16": 2, "U8": 1, "I8": 1}
    assert all(start % sizes[dtype] == 0 for (start, _), dtype in places)
    assert [start for (start, _), _ in places] == [0, *(stop for (_, stop), _ in places[:-1])]
    assert body + places[-1][0][1] == len(content)


def loadkit_header(content: bytes) -> dict[str, Any]:
    import json

    found: dict[str, Any] = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return found


# What was written early and isn't what the model has


class Written:
    """A model that is there, and a writing of it that somebody else drives."""

    def __init__(self, entries: Entries, folder: Path) -> None:
        self.entries = entries
        self.model = loadkit.load(folder, "inference-4bit", quantized_cache=False).model
        self.state = state_of(self.model)
        self.lock = entries.lock(KEY)
        assert self.lock is not None
        self.lock.acquire(timeout=0)
        self.writing = EntryWriting(entries, KEY, 2**20)
        self.room = aligned(2**16)

    def offer(self, *tensors: Any) -> None:
        for tensor in tensors:
            self.writing.offer(tensor, self.room)
        settle(self.writing)

    def offer_parameters(self) -> None:
        self.offer(*(p for p in self.model.parameters() if p.nbytes % 64 == 0))

    def complete(self) -> None:
        record = Record(key=KEY, created=time.time(), files={})
        self.writing.complete(self.model, state_of(self.model), record, self.lock)
        finish_writing()
        assert not self.lock.is_locked

    def kept(self) -> bool:
        return equal(stored(self.entries), state_of(self.model))


@pytest.fixture
def half(entries: Entries, tiny: Tiny) -> Written:
    return Written(entries, tiny("mistral"))


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight"])
def test_what_changes_in_place_after_it_was_written_is_written_again(
    half: Written, restarts: list[int], name: str
) -> None:
    half.offer_parameters()
    with torch.no_grad():
        half.model.get_parameter(name).data.add_(1)  # torch's own count of changes doesn't see it
    half.complete()
    assert half.kept()
    assert restarts == [0]


def test_what_is_replaced_after_it_was_written_has_all_written_again(
    half: Written, restarts: list[int]
) -> None:
    half.offer_parameters()
    other = half.model.model.embed_tokens.weight.detach().clone() + 1
    half.model.model.embed_tokens.weight = torch.nn.Parameter(other)
    half.complete()
    assert half.kept()
    assert len(restarts) == 2


@pytest.mark.parametrize("alive", [True, False])
def test_what_the_model_never_has_has_all_written_again(
    half: Written, restarts: list[int], alive: bool
) -> None:
    strange = torch.ones(128)
    half.offer(strange)
    if not alive:
        del strange
    half.offer_parameters()
    half.complete()
    assert half.kept()
    assert len(restarts) == 2


def test_memory_that_is_used_again_for_another_tensor_has_that_written_again(
    half: Written, restarts: list[int]
) -> None:
    weight = half.model.model.embed_tokens.weight
    with torch.no_grad():
        before = weight.detach().clone()
        weight.data.zero_()
        half.offer(weight.detach().view(weight.shape))  # another object, gone at once
        weight.data.copy_(before)
    half.offer_parameters()
    half.complete()
    assert half.kept()
    assert torch.equal(half.model.model.embed_tokens.weight, before)
    assert restarts == [0]


def test_what_is_offered_and_not_written_yet_is_left_once_the_model_is_there(
    half: Written, restarts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A phase that follows may give parameters other values, as the k-bit preparation does."""
    real, go, begun = TensorFile.append, threading.Event(), threading.Event()

    def late(file: TensorFile, content: Any) -> Any:
        begun.set()
        assert go.wait(60)
        return real(file, content)

    monkeypatch.setattr(TensorFile, "append", late)
    weights = [p for p in half.model.parameters() if p.nbytes % 64 == 0]
    for weight in weights:
        half.writing.offer(weight, half.room)
    assert begun.wait(60)
    as_loaded = {name: tensor.clone() for name, tensor in half.state.items()}
    record = Record(key=KEY, created=time.time(), files={})
    half.writing.complete(half.model, state_of(half.model), record, half.lock)
    for weight in weights:
        weight.data = weight.data.float()
    go.set()
    finish_writing()
    assert equal(stored(half.entries), as_loaded)
    assert restarts == [0]


def test_a_tensor_that_is_told_of_twice_is_written_once(half: Written, restarts: list[int]) -> None:
    half.offer_parameters()
    end = half.writing._file.end
    half.offer_parameters()
    assert half.writing._file.end == end
    half.complete()
    assert half.kept()
    assert restarts == [0]


def test_a_header_without_room_has_all_written_again(half: Written, restarts: list[int]) -> None:
    half.room = aligned(room_for(half.state) // 2)
    half.offer_parameters()
    half.complete()
    assert half.kept()
    assert len(restarts) == 2


def test_nothing_is_kept_alive_for_the_writing(half: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor that the model drops before it was written is gone, however slow the disk is."""
    real, go = TensorFile.append, threading.Event()

    def late(file: TensorFile, content: Any) -> Any:
        assert go.wait(60)
        return real(file, content)

    monkeypatch.setattr(TensorFile, "append", late)
    first, second = torch.ones(64), torch.ones(64)
    half.writing.offer(first, half.room)
    half.writing.offer(second, half.room)
    gone = weakref.ref(second)
    del second
    gc.collect()
    assert gone() is None
    go.set()
    half.complete()
    assert half.kept()


# Disks


@pytest.mark.parametrize("times", [1, 99])
def test_bytes_that_come_back_otherwise_are_written_again_or_nothing_is_kept(
    half: Written, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    real, left = TensorFile._write, [times]

    def harm(file: TensorFile, at: int, piece: memoryview) -> None:
        if at and left[0]:
            left[0] -= 1
            piece = memoryview(bytes([piece[0] ^ 1]) + bytes(piece[1:]))
        real(file, at, piece)

    monkeypatch.setattr(TensorFile, "_write", harm)
    half.offer_parameters()
    half.complete()
    if times == 1:
        assert half.kept()
    else:
        assert list(half.entries) == []
        assert "isn't what was loaded" in half.entries.refused(KEY)
        assert half.entries.broken() == []


@pytest.mark.parametrize("after", [0, 5])
def test_a_disk_that_is_full_while_the_model_loads_costs_the_entry_only(
    tiny: Tiny, entries: Entries, keeping: list[EntryWriting], monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    real, left_over = TensorFile.append, [after]

    def full(file: TensorFile, content: Any) -> Any:
        left_over[0] -= 1
        if left_over[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(file, content)

    with monkeypatch.context() as patch:
        patch.setattr(TensorFile, "append", full)
        loaded = load(tiny("mistral"))
    assert "not kept: OSError: [Errno 28]" in told(loaded)
    assert "No space left" in str(loadkit.plan(tiny("mistral"), "inference-4bit"))
    assert left(entries) == []
    assert same(loaded, load(tiny("mistral"), quantized_cache=False))


def test_what_cant_be_kept_isnt_begun(
    tiny: Tiny, entries: Entries, keeping: list[EntryWriting], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOADKIT_CACHE_MAX", "1kB")
    assert "LOADKIT_CACHE_MAX" in told(load(tiny("mistral")))
    assert keeping == []
    assert left(entries) == []


def test_where_memory_is_short_the_pages_go_and_the_entry_is_the_same(
    tiny: Tiny, entries: Entries, keeping: list[EntryWriting], monkeypatch: pytest.MonkeyPatch
) -> None:
    from loadkit_plugins.quantized_cache import writer

    given_up: list[int] = []
    real = os.posix_fadvise

    def advise(file: int, start: int, length: int, advice: int) -> None:
        given_up.append(length)
        real(file, start, length, advice)

    monkeypatch.setattr(writer, "_pages_may_stay", lambda expected: False)
    monkeypatch.setattr(writer, "SYNC_BYTES", 1)
    monkeypatch.setattr(writer, "SYNC_SECONDS", 0.0001)
    monkeypatch.setattr(os, "posix_fadvise", advise)
    loaded = load(tiny("mistral"))
    assert sum(given_up) > 0
    assert equal(stored(entries), state_of(loaded.model))


# Loads that fail


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt(), MemoryError()])
def test_a_load_that_fails_half_way_leaves_nothing(
    tiny: Tiny, entries: Entries, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    import transformers.core_model_loading as loading

    real, left_over = loading.set_param_for_module, [9]

    def fails(*given: Any, **more: Any) -> None:
        left_over[0] -= 1
        if left_over[0] < 0:
            raise error
        real(*given, **more)

    with monkeypatch.context() as patch:
        patch.setattr(loading, "set_param_for_module", fails)
        with pytest.raises((loadkit.LoadError, KeyboardInterrupt)):
            load(tiny("mistral"))
    assert left_over[0] < 0
    finish_writing()
    assert left(entries) == []
    after = load(tiny("mistral"))  # at once: the lock is given back
    assert left(entries) == [next(iter(entries)).record.key]
    assert list(entries.refusals) == []
    assert "kept for the next load" in told(after)
    assert equal(stored(entries), state_of(after.model))


def test_a_load_that_is_served_writes_nothing(
    tiny: Tiny, keeping: list[EntryWriting], monkeypatch: pytest.MonkeyPatch
) -> None:
    load(tiny("mistral"))
    keeping.clear()
    begun: list[Any] = []
    monkeypatch.setattr(EntryWriting, "offer", lambda *given: begun.append(given))
    assert "from the cache" in told(load(tiny("mistral")))
    assert begun == keeping == []


def test_modules_that_other_threads_make_meanwhile_arent_written(
    tiny: Tiny,
    entries: Entries,
    keeping: list[EntryWriting],
    restarts: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = transformers.AutoModelForCausalLM.from_pretrained

    def busy(*given: Any, **more: Any) -> Any:
        thread = threading.Thread(target=lambda: torch.nn.Linear(64, 64))
        thread.start()
        thread.join()
        return real(*given, **more)

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", busy)
    load(tiny("mistral"))
    assert keeping
    assert restarts == [0]


def test_only_what_has_its_values_and_a_whole_size_is_handed_over() -> None:
    """What follows a tensor of an odd size would lie where its dtype can't."""
    told_of: list[tuple[Any, int]] = []
    handing = handover.Handover(lambda tensor, room: told_of.append((tensor, room)))
    try:
        module = torch.nn.Module()
        with torch.device("meta"):
            module.unbuilt = torch.nn.Parameter(torch.empty(64, 64))
            module.another = torch.nn.Parameter(torch.empty(64, 64))
        module.odd = torch.nn.Parameter(torch.ones(4097, dtype=torch.bfloat16))
        module.small = torch.nn.Parameter(torch.ones(64))
        module.turned = torch.nn.Parameter(torch.ones(64, 32).T)
        module.whole = torch.nn.Parameter(torch.ones(64, 64))
        packed = torch.nn.Parameter(torch.ones(64, 64, dtype=torch.uint8), requires_grad=False)
        packed.quant_state = torch.nn.Module  # type: ignore[attr-defined]  # a class is no tensor's holder
        packed.scales = {"not": "looked into"}  # type: ignore[attr-defined]
        packed.more = torch.ones(1024)  # type: ignore[attr-defined]
        module.packed = packed
    finally:
        handing.end()
    module.late = torch.nn.Parameter(torch.ones(64, 64))
    assert [id(tensor) for tensor, _ in told_of] == [id(t) for t in (module.whole, packed, packed.more)]
    assert {room for _, room in told_of} == {2 * handover.HEADER}


# The file


def test_every_dtype_comes_back_bit_for_bit(tmp_path: Path) -> None:
    tensors = {
        name: torch.arange(128, dtype=torch.uint8).view(getattr(torch, name))
        if name != "bool"
        else torch.tensor([True, False] * 32)
        for name in DTYPES
    }
    tensors |= {"empty": torch.empty(0, 4), "one": torch.tensor(3.0), 'ünïcode "quoted"': torch.ones(3)}
    file = TensorFile(tmp_path / "x.safetensors")
    file.restart(room_for(tensors))
    places = {}
    for name in sorted(tensors, key=lambda name: -tensors[name].element_size()):
        content = tensors[name].reshape(-1).view(torch.uint8).numpy()
        places[name] = file.append(content)
    file.finish(tensors, places)
    file.close()
    assert equal(load_file(tmp_path / "x.safetensors"), tensors)


def test_early_tensors_have_no_place_once_one_isnt_the_models(tmp_path: Path) -> None:
    file = TensorFile(tmp_path / "x")
    early, tensor, other = EarlyTensors(file), torch.ones(64), torch.ones(64)
    early.write(tensor)
    early.write(other)
    assert early.places({"a": tensor, "b": other, "c": torch.ones(64)}).keys() == {"a", "b"}
    assert early.places({"a": tensor, "c": torch.ones(64)}) == {}
    file.close()
