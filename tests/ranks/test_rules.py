"""What the ranks compare, and how they wait, without processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
import torch
from examples import EIGHT_RANKS

import loadkit
from loadkit import Finding, RankError, Topology
from loadkit.audit.local_shard import Part, part_of
from loadkit.facts.hub.pinned_commits import agreed_commit, note_commit, noting_commits
from loadkit.planning.pipeline import this_machine
from loadkit.ranks import Ranks, ranks_of_this_launch
from loadkit.ranks.agreement import difference, digest_of, to_agree_on
from loadkit.ranks.device import take_own_device
from loadkit.ranks.findings import merged
from loadkit.ranks.messages import Messages
from loadkit.ranks.random_numbers import random_state, with_random_state
from loadkit.ranks.settings import Settings, read_settings
from loadkit.ranks.stores import open_store


def test_a_process_on_its_own_asks_nobody() -> None:
    assert type(ranks_of_this_launch(topology=Topology())) is Ranks
    assert type(ranks_of_this_launch(together=False, topology=EIGHT_RANKS)) is Ranks
    assert type(ranks_of_this_launch(topology=EIGHT_RANKS)) is not Ranks


@pytest.mark.parametrize("text", ["soon", "0", "-1", "inf", "nan"])
def test_a_wait_must_be_a_number(text: str) -> None:
    with pytest.raises(loadkit.LoadkitError, match=r"LOADKIT_RANKS_TIMEOUT=.* isn't a number of seconds"):
        read_settings({"LOADKIT_RANKS_TIMEOUT": text})


def test_waits_are_read() -> None:
    assert read_settings({}) == Settings()
    found = read_settings({"LOADKIT_RANKS_TIMEOUT": "60", "LOADKIT_RANKS_SILENCE": "9.5"})
    assert (found.timeout, found.silence) == (60.0, 9.5)


def test_a_launcher_that_says_no_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(loadkit.LoadkitError, match="together=False"):
        open_store(EIGHT_RANKS, Settings(), print)


def placed(folder: Path, rank: int, **options: object) -> dict[str, str]:
    topology = Topology(world_size=2, rank=rank, local_rank=rank, local_world_size=2, engine="ddp")
    return to_agree_on(loadkit.plan(folder, "lora", topology=topology, **options), topology)


def test_equal_checkpoints_in_other_folders_are_equal(tiny, tmp_path: Path) -> None:
    shutil.copytree(tiny("mistral"), tmp_path / "copy")
    assert digest_of(placed(tiny("mistral"), 0)) == digest_of(placed(tmp_path / "copy", 1))


def test_a_ranks_own_device_is_no_difference(tiny) -> None:
    plan = loadkit.plan(tiny("mistral"), "lora")
    value = plan.placement
    digests = set()
    for rank in range(2):
        there = [
            msgspec.structs.replace(d, value=msgspec.structs.replace(value, device_map={"": rank}))
            if d.stage == "device_map"
            else d
            for d in plan.decisions
        ]
        topology = Topology(world_size=2, rank=rank, local_rank=rank, local_world_size=2)
        digests.add(digest_of(to_agree_on(msgspec.structs.replace(plan, decisions=tuple(there)), topology)))
    assert len(digests) == 1


def test_what_the_cache_and_the_memory_are_like_is_no_difference(
    tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One rank's machine keeps the base quantized, and is smaller."""
    digests, plans = set(), []
    for rank, memory in enumerate((2**40, 2**36)):
        machine = loadkit.Machine(memory=memory, cores=rank + 1, packages=this_machine().packages)
        plan = loadkit.plan(tiny("mistral"), "qlora", machine=machine)
        shortcut = loadkit.plugins.Shortcut(plugin="wren", line=f"rank {rank}'s", serves=bool(rank))
        plan = msgspec.structs.replace(plan, shortcuts=(*plan.shortcuts, shortcut))
        plans.append(plan)
        topology = Topology(world_size=2, rank=rank, local_rank=rank, local_world_size=2)
        digests.add(digest_of(to_agree_on(plan, topology)))
    assert plans[0].memory != plans[1].memory
    assert plans[0].shortcuts != plans[1].shortcuts
    assert len(digests) == 1


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_one_other_byte_is_a_difference(name: str, tiny, tmp_path: Path) -> None:
    shutil.copytree(tiny("mistral"), tmp_path / "copy")
    path = tmp_path / "copy" / name
    data = bytearray(path.read_bytes())
    data[-2] ^= 1 if name.endswith("safetensors") else 0
    path.write_bytes(data if name.endswith("safetensors") else data + b"\n")
    ranks, message = difference([placed(tiny("mistral"), 0), placed(tmp_path / "copy", 1)])
    assert ranks == [1]
    assert f"file checkpoint/{name}: rank 0: " in message


def test_those_who_differ_from_most_are_named() -> None:
    ranks, message = difference([{"a": "1"}, {"a": "2"}, {"a": "1"}, {}])
    assert ranks == [1, 3]
    assert "  - a: ranks 0, 2: 1; rank 1: 2; rank 3: nothing\n" in message


def test_findings_are_listed_once_with_the_ranks_that_have_them() -> None:
    note, error = (
        Finding(stage="weights", plugin="p", code="c", message=m, severity=s)  # type: ignore[arg-type]
        for m, s in (("everywhere", "note"), ("here", "error"))
    )
    found = merged([[note], [note, error], [note, error]])
    assert [f.message for f in found] == ["ranks 1, 2: here", "everywhere"]


def test_random_numbers_are_the_others_and_then_ones_own_again() -> None:
    torch.manual_seed(1)
    theirs = random_state()
    expected = torch.rand(3)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    with with_random_state(theirs):
        assert torch.equal(torch.rand(3), expected)
    assert torch.equal(torch.get_rng_state(), before)


def test_noted_commits_hold_inside_only() -> None:
    note_commit("owner/name", "", "a" * 40)
    assert agreed_commit("owner/name", "") == ""
    with noting_commits() as notes:
        note_commit("owner/name", "", "a" * 40)
        assert agreed_commit("owner/name", "main") == ""
    with noting_commits(notes):
        assert agreed_commit("owner/name", "") == "a" * 40
    assert agreed_commit("owner/name", "") == ""


class Cuda:
    """Four devices, as `torch.cuda` has them."""

    def __init__(self, current: int | None, count: int = 4) -> None:
        self.current, self.count = current, count

    def is_available(self) -> bool:
        return self.count > 0

    def device_count(self) -> int:
        return self.count

    def is_initialized(self) -> bool:
        return self.current is not None

    def current_device(self) -> int:
        assert self.current is not None
        return self.current

    def set_device(self, device: int) -> None:
        self.current = device


@pytest.mark.parametrize(
    ("engine", "before", "count", "after"),
    [
        ("fsdp2", None, 4, 3),
        ("zero3", 0, 4, 3),
        ("fsdp2", 2, 4, 2),  # the program's own choice
        ("fsdp2", None, 1, None),  # each process sees its own device only
        ("fsdp2", None, 0, None),
        ("ddp", None, 4, None),  # the device map names it
    ],
)
def test_each_process_has_its_own_device_where_no_map_names_it(
    engine: str, before: int | None, count: int, after: int | None, tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = Cuda(before, count)
    topology = msgspec.structs.replace(EIGHT_RANKS, engine=engine)
    plan = loadkit.plan(tiny("mistral"), "qlora", topology=topology)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "cuda", cuda)
        take_own_device(plan, Topology(engine=topology.engine))
        assert cuda.current == before
        take_own_device(plan, topology)
    assert cuda.current == after


def test_an_unsplit_parameter_is_its_own_part() -> None:
    tensor = torch.ones(2, 3)
    assert part_of(tensor) == Part(tensor)


def test_a_rank_that_never_comes_is_named(tmp_path: Path) -> None:
    store = torch.distributed.FileStore(os.fspath(tmp_path / "store"), 2)
    store.set_timeout(timedelta(seconds=100))
    messages = Messages(store, 0, 2, Settings(timeout=0.3, silence=100, beat=0.05, parting=0.1))
    with pytest.raises(
        RankError, match=r"rank 0 waited \d+ s for rank 1 at 'plans' \(LOADKIT_RANKS_TIMEOUT\)"
    ) as raised:
        messages.gather("plans", "mine", str)
    messages.stop_heartbeat()
    messages.close()
    assert raised.value.ranks == (0, 1)


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_profiler_can_run_after_a_load_of_several_ranks(interrupted: bool) -> None:
    """A stop that was taken back made CPython 3.11 look for it ever after, and hang under a profiler."""
    code = f"""
import sys, time
from torch.distributed import HashStore
from loadkit.ranks.heartbeat import FAILED, Failure, Heartbeat, Stopped
from loadkit.ranks.settings import Settings
import msgspec
store = HashStore()
heartbeat, stopped = Heartbeat(store, 0, 1, Settings(beat=0.01, silence=5)), False
if {interrupted}:
    store.set(FAILED, msgspec.json.encode(Failure(ranks=(1,), message="gone")).decode())
    try:
        heartbeat.interrupt()
        for _ in range(10**9): pass
    except Stopped:
        stopped = True
heartbeat.stop()
def function(): return 1
sys.setprofile(lambda *about: None)
function()
sys.setprofile(None)
print("went on", stopped)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout == f"went on {interrupted}\n", done.stderr
