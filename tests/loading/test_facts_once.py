"""What planning read goes with the plan to loading: each fact is read once a load, and each repository listed
once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import HubServer

import loadkit
from loadkit.facts import load_facts
from loadkit.facts.machine import machine, topology
from loadkit.loading import download
from loadkit.testing.checkpoints import make_adapter

Tiny = Callable[..., Path]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """How often each fact was read."""
    counts: Counter[str] = Counter()

    def count(home: Any, name: str, what: str) -> None:
        real = getattr(home, name)

        def counted(*given: Any, **more: Any) -> Any:
            counts[what] += 1
            return real(*given, **more)

        monkeypatch.setattr(home, name, counted)

    machine._read_once.cache_clear()
    count(machine, "read_machine", "machine")
    count(topology, "read_processes", "topology")
    count(load_facts, "fingerprint", "fingerprint")
    count(load_facts, "local_weight_files", "weight files")
    count(download, "local_weight_files", "weight files")
    yield counts
    machine._read_once.cache_clear()


def listed(hub: HubServer) -> list[str]:
    """What loadkit asked about repositories. transformers 5.23 asks for the tree of a tokenizer's repository
    by itself."""
    paths = [a.path for a in hub.answers if a.method == "GET" and a.path.startswith("/api/models/")]
    return [path for path in paths if "/tree/" not in path]


@pytest.mark.parametrize("profile", ["lora", "qlora"])
def test_a_load_reads_each_fact_once(reads: Counter[str], tiny: Tiny, profile: str) -> None:
    """But for the fingerprint, which is taken again after loading: the files may be others by then."""
    loadkit.load(tiny("mistral"), profile)
    assert reads == {"machine": 1, "topology": 1, "fingerprint": 2, "weight files": 1}


def test_a_load_of_what_is_cached_quantized_reads_no_more(
    reads: Counter[str], tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from loadkit_plugins.quantized_cache.writer import finish_writing

    monkeypatch.setenv("LOADKIT_CACHE", str(tmp_path))
    monkeypatch.setenv("LOADKIT_QUANTIZED_CACHE", "1")
    loadkit.load(tiny("mistral"), "qlora")
    finish_writing()
    reads.clear()
    again = loadkit.load(tiny("mistral"), "qlora")
    assert any("from the cache" in line for line in again.report.shortcuts)
    assert reads == {"topology": 1, "fingerprint": 1, "weight files": 1}


def test_a_plan_that_is_run_reads_each_fact_once(reads: Counter[str], tiny: Tiny) -> None:
    plan = loadkit.plan(tiny("mistral"))
    reads.clear()
    loadkit.load(plan)
    assert reads == {"topology": 1, "fingerprint": 2, "weight files": 1}


def test_a_plan_for_elsewhere_works_out_no_shortcuts(reads: Counter[str], tiny: Tiny) -> None:
    plan = loadkit.plan(tiny("mistral"), "qlora", machine="8xH100-80GB")
    assert plan.elsewhere
    assert plan.shortcuts == ()
    assert reads["fingerprint"] == 0
    assert reads["weight files"] == 0


def test_a_repository_is_listed_once(hub: HubServer, tiny: Tiny, reads: Counter[str]) -> None:
    """Weights that are downloaded are looked for twice: before, and once they are there."""
    hub.add("owner/name", tiny("mistral"))
    loadkit.load("owner/name")
    assert len(listed(hub)) == 1
    assert reads["weight files"] == 2
    hub.answers.clear()
    reads.clear()
    loadkit.load("owner/name")
    assert len(listed(hub)) == 1
    assert reads["weight files"] == 1


def test_an_adapter_and_its_base_are_listed_once_each(hub: HubServer, tiny: Tiny, tmp_path: Path) -> None:
    hub.add("owner/base", tiny("mistral"))
    adapter = make_adapter(tmp_path / "adapter", tiny("mistral"))
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(
        json.dumps(config | {"base_model_name_or_path": "owner/base"})
    )
    hub.add("owner/adapter", adapter)
    loadkit.load("owner/adapter")
    assert len(listed(hub)) == len(set(listed(hub))) == 2


def test_a_tokenizer_of_its_own_is_listed_once(hub: HubServer, tiny: Tiny) -> None:
    hub.add("owner/name", tiny("mistral"))
    hub.add("owner/tokenizer", tiny("mistral"))
    loadkit.load("owner/name", tokenizer="owner/tokenizer")
    assert len(listed(hub)) == len(set(listed(hub))) == 2
