"""Machines by name, and where a plan is for."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

import loadkit
from loadkit import LoadkitError, Machine, PlanError, Problem
from loadkit.facts.machine.named_machines import KNOWN, named_machine

HERE = Machine(memory=2**34, cores=4, packages={"torch": "2.13.0"})
GIB = 2**30


def named(spec: str) -> Machine:
    found = named_machine(spec, HERE)
    assert isinstance(found, Machine), found
    return found


@pytest.mark.parametrize(
    ("spec", "count", "capability", "memory", "host"),
    [
        ("8xH100-80GB", 8, (9, 0), 80, 0),
        ("H100", 1, (9, 0), 80, 0),
        ("4 x l40s", 4, (8, 9), 48, 0),
        ("2xT4", 2, (7, 5), 15, 0),
        ("8x80GB-sm90", 8, (9, 0), 80, 0),
        ("1x180GB-sm100", 1, (10, 0), 180, 0),
        ("8xA100-40GB+512GB", 8, (8, 0), 40, 512),
        ("8xA100-80GB + 1.5TB", 8, (8, 0), 80, 1536),
    ],
)
def test_accelerators(spec: str, count: int, capability: tuple[int, int], memory: int, host: int) -> None:
    machine = named(spec)
    assert len(machine.accelerators) == count
    assert (machine.capability, machine.accelerators[0].memory) == (capability, memory * GIB)
    assert (machine.kind, machine.memory, machine.packages) == ("cuda", host * GIB, HERE.packages)


def test_a_machine_without_accelerators() -> None:
    assert (named("cpu-64GB").kind, named("cpu-64GB").memory) == ("cpu", 64 * GIB)


def test_every_known_one_can_be_asked_for_and_has_a_source() -> None:
    for name, known in KNOWN.items():
        assert named(name).accelerators[0].name == known.name
        assert known.source
        assert known.memory > 10 * GIB


@pytest.mark.parametrize(
    ("spec", "word"),
    [
        ("8xH10", "did you mean 'H100'"),
        ("8xA100", "A100-40GB and A100-80GB are known"),
        ("8xH100-80G", "did you mean 'H100-80GB'"),
        ("0xH100", "isn't a machine"),
        ("", "isn't a machine"),
        ("4xcpu-64GB", "--nodes counts them"),
    ],
)
def test_unknown_names(spec: str, word: str) -> None:
    found = named_machine(spec, HERE)
    assert isinstance(found, Problem)
    assert word in found.message
    assert "8x80GB-sm90" in found.remedy


def test_a_plan_for_machines_that_are_not_here(tiny: Any) -> None:
    plan = loadkit.plan(tiny("mistral"), "qlora", machine="8xH100-80GB", nodes=2, engine="fsdp2")
    assert plan.topology == "16 processes on 2 nodes, fsdp2 (given by hand)"
    assert "8 × NVIDIA H100" in plan.elsewhere
    assert plan.elsewhere.endswith(plan.topology)
    assert [p.code for p in plan.warnings if p.stage == "machine"] == ["planned-elsewhere"]
    assert loadkit.Plan.from_json(plan.to_json()) == plan
    assert plan.topology in " ".join(str(plan).split())


def test_such_a_plan_is_never_loaded(tiny: Any) -> None:
    path = tiny("mistral")
    plan = loadkit.plan(path, machine="H100", nodes=1)
    for source in (plan, loadkit.Plan.from_json(plan.to_json())):
        with pytest.raises(LoadkitError, match=r"is for 1 × NVIDIA H100 .* it can't be loaded here"):
            loadkit.load(source)
    for elsewhere in ({"machine": "cpu-64GB"}, {"nodes": 2}, {"machine": "2xT4", "engine": "ddp"}):
        with pytest.raises(LoadkitError, match="it can't be loaded here"):
            loadkit.load(path, **elsewhere)


def test_the_engine_of_this_launch_can_be_named(tiny: Any) -> None:
    """A program that calls torch's fully_shard itself has no launcher that says so."""
    plan = loadkit.plan(tiny("mistral"), engine="fsdp2")
    assert not plan.elsewhere
    assert plan.placement.device_map is None
    assert loadkit.load(plan).model is not None


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"engine": "fspd2"}, "unknown-engine"),
        ({"nodes": 0}, "nodes"),
        ({"machine": "8xH10"}, "unknown-machine"),
        ({"machine": "8xH100", "engine": "tensor-parallel", "tp_size": 3}, "tp-size"),
        ({"machine": "8xH100", "engine": "zero2", "tp_plan": "auto"}, "tensor-parallel-beside-engine"),
    ],
)
def test_what_cannot_be(tiny: Any, options: dict[str, Any], code: str) -> None:
    with pytest.raises(PlanError) as caught:
        loadkit.plan(tiny("mistral"), **options)
    assert code in [p.code for p in caught.value.problems if p.severity == "error"]


def test_on_the_command_line(tiny: Any) -> None:
    more = ["--machine", "8xH100-80GB", "--nodes", "2", "--engine", "fsdp2", "-p", "qlora"]
    done = called("plan", str(tiny("mistral")), *more, "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["elsewhere"]
    assert plan["memory"]["per_rank"]["processes"] == 8
    refused = called("load", str(tiny("mistral")), *more[:2])
    assert refused.returncode == 2
    assert "No such option" in refused.stderr


def called(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A process of its own: click keeps the look of its help from one call to the next."""
    code = "from loadkit.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
