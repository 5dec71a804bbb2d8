"""Variables of the environment are in the ledger like all that was asked, and misspelt ones are told."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import loadkit
from loadkit.facts.machine.launchers import LAUNCHERS
from loadkit.facts.machine.topology import Topology, read_topology
from loadkit.planning.environment_asked import BESIDE, MEETING, launch_variables
from loadkit.request.environment import OWN, VARIABLES, misspelt, variables_set
from loadkit.schema.ledger import Requested

VARIABLE = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)+|RANK")

OF_LAUNCHERS = {
    *(name for each in LAUNCHERS for group in (each.world, each.rank, each.local_rank, each.local_world, each.node) for name in group),
    *(name for names in BESIDE.values() for name in names),
    *MEETING,
    "ACCELERATE_USE_FSDP", "FSDP_VERSION",
}  # fmt: skip
"""Variables that the topology is read from."""

NO_MORE_THAN_TOLD: Mapping[str, str] = {
    "ACCELERATE_USE_MEGATRON_LM": "refused",
    "TORCHELASTIC_RUN_ID": "which launcher counts",
    "SLURM_STEP_ID": "which launcher counts",
    "NO_COLOR": "colours of what is printed",
    "OMP_WAIT_POLICY": "how the demo's threads wait",
}
"""Variables that are read and ask nothing of a load."""

NO_VARIABLES = {"UNFILLED_IS", "CUDA_VISIBLE", "KNOWN_ISSUES", "LOADKIT_API"}
"""Strings that only look like variables: the beginning of several, and names in Python."""


def test_every_variable_that_is_read_is_known() -> None:
    """A variable that some module of loadkit or its plugins reads, and nobody has put into the table."""
    import loadkit_plugins

    read: dict[str, str] = {}
    for root in (Path(loadkit.__file__).parent, Path(loadkit_plugins.__file__).parent):
        for path in sorted(root.rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            if "environ" not in text and "env:" not in text and "getenv" not in text:
                continue
            for node in ast.walk(ast.parse(text)):
                if (
                    isinstance(node, ast.Constant)
                    and isinstance(node.value, str)
                    and VARIABLE.fullmatch(node.value)
                ):
                    read[node.value] = path.name
    known = VARIABLES.keys() | OF_LAUNCHERS | NO_MORE_THAN_TOLD.keys() | NO_VARIABLES
    assert len(read) > 30
    assert {name: path for name, path in read.items() if name not in known} == {}
    assert set(OWN) <= read.keys()


def ledger(env: Mapping[str, str], **more: Any) -> dict[str, Requested]:
    given = {"hub": True, "accelerators": True, "launch": {}, **more}
    return {each.name: each for each in variables_set(env, **given)}


@pytest.mark.parametrize(
    ("name", "value", "idle"),
    [
        ("LOADKIT_CACHE", "/somewhere", ""),
        ("LOADKIT_CACHE_MAX", "10GB", ""),
        ("LOADKIT_DISABLE", "attention", ""),
        ("LOADKIT_PLUGINS", "dtype", ""),
        ("LOADKIT_QUANTIZED_CACHE", "off", "1"),
        ("LOADKIT_RANKS_SILENCE", "60", ""),
        ("LOADKIT_RANKS_TIMEOUT", "60", ""),
        ("LOADKIT_STRICT", "1", "0"),
        ("CUDA_VISIBLE_DEVICES", "1", None),
        ("HF_HUB_OFFLINE", "1", "0"),
        ("TRANSFORMERS_OFFLINE", "yes", "0"),
        ("HF_HOME", "/somewhere", ""),
        ("HF_HUB_CACHE", "/somewhere", ""),
        ("HF_ENDPOINT", "https://mirror.example", ""),
        ("HF_DEACTIVATE_ASYNC_LOAD", "1", "0"),
        ("USE_HUB_KERNELS", "0", ""),
    ],
)
def test_a_variable_is_in_the_ledger_where_it_changes_something(
    name: str, value: str, idle: str | None
) -> None:
    found = ledger({name: value})[name]
    assert (found.by, found.value) == ("environment", value)
    assert found.disposition == ("decided" if VARIABLES[name].own else "passed on")
    assert found.where == VARIABLES[name].taker
    if idle is not None:
        assert ledger({name: idle}) == {}


def test_what_of_the_environment_gives_way() -> None:
    caches = {"HF_HOME": "/a", "HF_HUB_CACHE": "/b"}
    found = ledger(caches)
    assert found["HF_HUB_CACHE"].disposition == "passed on"
    assert (found["HF_HOME"].disposition, found["HF_HOME"].because) == (
        "overruled",
        "HF_HUB_CACHE is set too",
    )
    over = ledger(caches, cache_dir_by="you")
    assert {each.because for each in over.values()} == {"you gave cache_dir"}
    assert ledger(caches, hub=False) == {}
    assert ledger({"CUDA_VISIBLE_DEVICES": "0"}, accelerators=False) == {}
    assert ledger({"CUDA_VISIBLE_DEVICES": ""}, accelerators=False)


def test_secrets_stay_where_they_are() -> None:
    found = ledger({"HF_TOKEN": "hf_secret", "HF_ENDPOINT": "https://me:pass@mirror.example"})
    assert found["HF_TOKEN"].value is None
    assert found["HF_ENDPOINT"].value == "https://mirror.example"


@pytest.mark.parametrize(
    ("env", "names"),
    [
        ({"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}, {"WORLD_SIZE", "RANK", "LOCAL_RANK"}),
        ({"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}, set()),
        (
            {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true",
             "FSDP_VERSION": "2", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true", "MASTER_ADDR": "here"},
            {"WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "ACCELERATE_USE_FSDP", "FSDP_VERSION",
             "FSDP_CPU_RAM_EFFICIENT_LOADING", "MASTER_ADDR"},
        ),
        (
            {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "ACCELERATE_USE_DEEPSPEED": "true",
             "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"},
            {"WORLD_SIZE", "RANK", "LOCAL_RANK", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_DEEPSPEED_ZERO_STAGE"},
        ),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "1"},
         {"OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"}),
    ],
)  # fmt: skip
def test_a_launchers_variables_are_those_that_the_topology_was_read_from(
    env: Mapping[str, str], names: set[str]
) -> None:
    found = ledger(env, launch=launch_variables(read_topology(env, {})))
    assert found.keys() == names
    assert {each.disposition for each in found.values()} <= {"decided"}


def test_processes_that_were_given_by_hand_ask_nothing_of_the_environment() -> None:
    given = Topology(world_size=2, local_world_size=2, engine="ddp", read_from={"processes": "given by hand"})
    assert launch_variables(given) == {}


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("LOADKIT_CASHE", "LOADKIT_CACHE"),
        ("LOADKIT_DISABLED", "LOADKIT_DISABLE"),
        ("LOADKIT_PLUGIN", "LOADKIT_PLUGINS"),
        ("LOADKIT_QUANTISED_CACHE", "LOADKIT_QUANTIZED_CACHE"),
        ("LOADKIT_RANK_TIMEOUT", "LOADKIT_RANKS_TIMEOUT"),
        ("LODKIT_CACHE", "LOADKIT_CACHE"),
        ("LOAD_KIT_STRICT", "LOADKIT_STRICT"),
        ("loadkit_cache", "LOADKIT_CACHE"),
    ],
)
def test_a_misspelt_variable_is_told_with_the_nearest(name: str, meant: str) -> None:
    (problem,) = misspelt({name: "1"})
    assert (problem.code, problem.severity) == ("unknown-variable", "warning")
    assert name in problem.message
    assert f"did you mean {meant!r}?" in problem.message


@pytest.mark.parametrize("name", ["LOADKIT_CACHE", "LOADKIT_EVERY_TYPE", "PATH", "LOAD", "TOOLKIT_CACHE"])
def test_other_variables_are_nobodys_mistakes(name: str) -> None:
    assert misspelt({name: "1"}) == []


def test_plans_have_the_environment(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the ledger and as a warning; the digest, which the processes of a launch compare, has none of it."""
    for name in OWN:
        monkeypatch.delenv(name, raising=False)
    bare = loadkit.plan(tiny("mistral"))
    assert not [each for each in bare.requested if each.by == "environment"]
    monkeypatch.setenv("LOADKIT_QUANTIZED_CACHE", "0")
    monkeypatch.setenv("LOADKIT_CASHE", "/somewhere")
    monkeypatch.setenv("LOADKIT_OF_A_FRIEND", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # nothing comes from the Hub
    plan = loadkit.plan(tiny("mistral"))
    found = {each.name: each.disposition for each in plan.requested}
    assert found == {
        "LOADKIT_QUANTIZED_CACHE": "decided", "LOADKIT_CASHE": "no counterpart", "LOADKIT_OF_A_FRIEND": "no counterpart",
    }  # fmt: skip
    assert [each.code for each in plan.warnings] == ["unknown-variable"]
    assert plan.digest == bare.digest
    assert str(plan).count("LOADKIT_CASHE") == 1
    assert "LOADKIT_OF_A_FRIEND by environment: no counterpart" in str(plan)
    assert loadkit.Plan.from_json(plan.to_json()) == plan
