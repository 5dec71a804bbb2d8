"""What launchers set, what they really set, and what live objects say."""

from __future__ import annotations

import json
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import loadkit
from loadkit import PlanError, Topology
from loadkit.compat import get_kbit_device_map
from loadkit.facts.machine.topology import read_topology

RANKS = {"WORLD_SIZE": "16", "RANK": "11", "LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "8", "GROUP_RANK": "1"}
FSDP2 = {**RANKS, "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
DEEPSPEED = {**RANKS, "ACCELERATE_USE_DEEPSPEED": "true"}


def read(env: dict[str, str], modules: dict[str, Any] | None = None) -> Topology:
    return read_topology(env, modules or {})


def codes(env: dict[str, str]) -> list[str]:
    found = read(env)
    assert found.problems == () or (found.world_size, found.rank, found.engine) == (1, 0, "none")
    assert all(p.remedy for p in found.problems)
    return [p.code for p in found.problems]


@pytest.mark.parametrize(
    ("env", "name"),
    [
        (RANKS, "torchrun"),
        (
            {
                "OMPI_COMM_WORLD_SIZE": "16",
                "OMPI_COMM_WORLD_RANK": "11",
                "OMPI_COMM_WORLD_LOCAL_RANK": "3",
                "OMPI_COMM_WORLD_LOCAL_SIZE": "8",
            },
            "Open MPI",
        ),
        (
            {
                "MV2_COMM_WORLD_SIZE": "16",
                "MV2_COMM_WORLD_RANK": "11",
                "MV2_COMM_WORLD_LOCAL_RANK": "3",
                "MV2_COMM_WORLD_LOCAL_SIZE": "8",
            },
            "MVAPICH",
        ),
        ({"PMI_SIZE": "16", "PMI_RANK": "11", "MPI_LOCALRANKID": "3", "MPI_LOCALNRANKS": "8"}, "MPI"),
        (
            {
                "SLURM_STEP_ID": "0",
                "SLURM_NTASKS": "16",
                "SLURM_PROCID": "11",
                "SLURM_LOCALID": "3",
                "SLURM_NODEID": "1",
                "SLURM_STEP_TASKS_PER_NODE": "8(x2)",
            },
            "SLURM",
        ),
    ],
)
def test_launchers(env: dict[str, str], name: str) -> None:
    found = read(env)
    numbers = (found.world_size, found.rank, found.local_rank, found.local_world_size, found.node_rank)
    assert numbers == (16, 11, 3, 8, 1)
    assert (found.nodes, found.engine) == (2, "ddp")
    assert found.read_from["processes"].startswith(f"{name}: ")
    assert all(variable in found.read_from["processes"] for variable in env if variable != "SLURM_STEP_ID")


def test_a_single_process() -> None:
    alone = Topology()
    assert read({}) == alone
    assert read({"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}) == alone
    assert read({"LOCAL_RANK": "-1"}) == alone
    batch_script = {"SLURM_NTASKS": "16", "SLURM_PROCID": "0", "SLURM_NODEID": "0"}
    assert read(batch_script) == alone  # srun alone starts several, and sets SLURM_STEP_ID
    assert alone.describe() == ""


def test_torchrun_inside_another_launcher_counts() -> None:
    inner = {**RANKS, "TORCHELASTIC_RUN_ID": "1"}
    outer = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}
    assert read({**outer, **inner}) == read(inner)


@pytest.mark.parametrize(
    ("env", "code", "word"),
    [
        ({**RANKS, "RANK": "16"}, "rank-out-of-range", "RANK=16"),
        ({**RANKS, "LOCAL_RANK": "8"}, "rank-out-of-range", "LOCAL_RANK=8"),
        ({**RANKS, "LOCAL_WORLD_SIZE": "32"}, "rank-out-of-range", "LOCAL_WORLD_SIZE=32"),
        ({"WORLD_SIZE": "0", "RANK": "0"}, "rank-out-of-range", "no processes"),
        ({**RANKS, "WORLD_SIZE": "many"}, "launch-variable", "WORLD_SIZE='many'"),
        ({**RANKS, "LOCAL_RANK": "-2"}, "launch-variable", "LOCAL_RANK='-2'"),
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "1"}, "launch-incomplete", "RANK isn't set"),
        ({"WORLD_SIZE": "2", "RANK": "1"}, "launch-incomplete", "LOCAL_RANK isn't set"),
        ({"RANK": "3"}, "launch-incomplete", "WORLD_SIZE isn't set"),
        ({**RANKS, "OMPI_COMM_WORLD_SIZE": "4"}, "launchers-disagree", "Open MPI"),
        ({**FSDP2, "FSDP_VERSION": "3"}, "engine-setting", "FSDP_VERSION is 3"),
        ({**FSDP2, "FSDP_VERSION": "two"}, "launch-variable", "FSDP_VERSION='two'"),
        ({**FSDP2, "ACCELERATE_USE_DEEPSPEED": "true"}, "several-engines", "ACCELERATE_USE_FSDP"),
        ({**RANKS, "ACCELERATE_USE_MEGATRON_LM": "true"}, "unknown-engine", "MEGATRON"),
        ({**DEEPSPEED, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "4"}, "engine-setting", "4"),
        ({**DEEPSPEED, "ACCELERATE_DEEPSPEED_CONFIG_FILE": "/none.json"}, "deepspeed-config", "/none.json"),
        (
            {**RANKS, "ACCELERATE_USE_PARALLELISM_CONFIG": "true", "PARALLELISM_CONFIG_TP_SIZE": "3"},
            "tp-size",
            "groups of 3",
        ),
    ],
)
def test_nonsense_is_reported(env: dict[str, str], code: str, word: str) -> None:
    assert codes(env) == [code]
    assert word in read(env).problems[0].message


def test_an_assumption_is_reported() -> None:
    found = read({"WORLD_SIZE": "4", "RANK": "1", "LOCAL_RANK": "1"})
    assert found.local_world_size == 4
    assert "one node is assumed" in found.read_from["processes"]


def test_nonsense_stops_a_plan(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(PlanError, match="RANK=2 doesn't fit WORLD_SIZE=2"):
        loadkit.plan(tiny("mistral"))
    with pytest.raises(PlanError, match="RANK=2"):
        get_kbit_device_map()


# --- the engine


def test_engines_of_accelerate(tmp_path: Path) -> None:
    def engine(env: dict[str, str]) -> str:
        assert codes(env) == []
        return read(env).engine

    assert engine({**RANKS, "ACCELERATE_USE_FSDP": "true"}) == "fsdp"
    assert engine(FSDP2) == "fsdp2"
    assert engine(DEEPSPEED) == "zero2"  # accelerate's own default
    for stage, name in ((0, "ddp"), (1, "zero1"), (2, "zero2"), (3, "zero3")):
        assert engine({**DEEPSPEED, "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage)}) == name
    config = tmp_path / "ds.json"
    config.write_text(json.dumps({"zero_optimization": {"stage": 3}}))
    by_file = {**DEEPSPEED, "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(config)}
    assert engine({**by_file, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "1"}) == "zero3"
    assert "ds.json" in read(by_file).read_from["engine"]
    config.write_text("{}")
    assert engine(by_file) == "ddp"
    config.write_text("stage: 3")
    assert codes(by_file) == ["deepspeed-config"]
    split = {**RANKS, "ACCELERATE_USE_PARALLELISM_CONFIG": "true", "PARALLELISM_CONFIG_TP_SIZE": "4"}
    assert (engine(split), read(split).tp_size) == ("tensor-parallel", 4)
    both = read({**FSDP2, **split})
    assert (both.engine, both.tp_size, both.splits_layers, both.shards_parameters) == ("fsdp2", 4, True, True)


def test_settings_of_fsdp() -> None:
    plain = read(FSDP2)
    assert not plain.reads_once
    assert not plain.checkpoints_activations
    more = {"FSDP_CPU_RAM_EFFICIENT_LOADING": "true", "FSDP_ACTIVATION_CHECKPOINTING": "true"}
    set_so = read({**FSDP2, **more})
    assert set_so.reads_once
    assert set_so.checkpoints_activations


class Config:
    """As much of transformers' HfDeepSpeedConfig as it looks at itself: the object can't be made without
    DeepSpeed."""

    def __init__(self, stage: int) -> None:
        self.config = {"zero_optimization": {"stage": stage}}


def test_a_deepspeed_config_that_is_alive() -> None:
    config = Config(3)
    modules = {
        "transformers.integrations.deepspeed": SimpleNamespace(
            _hf_deepspeed_config_weak_ref=weakref.ref(config)
        )
    }
    found = read(RANKS, modules)
    assert (found.engine, found.zero3_alive) == ("zero3", True)
    assert "transformers" in found.read_from["engine"]
    launched = {**DEEPSPEED, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}
    assert read(launched, modules).zero3_alive is True
    assert read(launched).zero3_alive is False
    assert (
        "zero2" in read(DEEPSPEED, modules).read_from["engine"]
    )  # the contradiction is reported, what is alive counts
    del config
    gone = read(launched, modules)
    assert (gone.engine, gone.zero3_alive) == ("zero3", False)


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ({"distributed_type": "FSDP", "fsdp_plugin": SimpleNamespace(fsdp_version=2)}, "fsdp2"),
        ({"distributed_type": "FSDP", "fsdp_plugin": SimpleNamespace(fsdp_version=1)}, "fsdp"),
        (
            {
                "distributed_type": "DEEPSPEED",
                "deepspeed_plugins": {"default": SimpleNamespace(zero_stage=1)},
            },
            "zero1",
        ),
        ({"distributed_type": "MULTI_GPU"}, "ddp"),
        (
            {"distributed_type": "MULTI_GPU", "parallelism_config": SimpleNamespace(tp_size=2)},
            "tensor-parallel",
        ),
    ],
)
def test_an_accelerator_that_exists(state: dict[str, Any], expected: str) -> None:
    def modules(**more: Any) -> dict[str, Any]:
        return {
            "accelerate.state": SimpleNamespace(
                AcceleratorState=SimpleNamespace(_shared_state={**state, **more})
            )
        }

    assert read(RANKS, modules(_mixed_precision="bf16")).engine == expected
    assert read(FSDP2, modules()).engine == "fsdp2"  # a PartialState alone doesn't know the engine


# --- what is really set

TELL = """
import os, sys, json
from loadkit.facts.machine.topology import read_topology
before = read_topology()
after = None
if "accelerator" in sys.argv:
    from accelerate import Accelerator
    kept = Accelerator(cpu=True)
    after = read_topology().engine
if "deepspeed" in sys.argv:
    import transformers.integrations.deepspeed as ds
    class Config:
        config = {"zero_optimization": {"stage": 3}}
        def is_zero3(self): return True
    kept = Config()
    ds.set_hf_deepspeed_config(kept)
    assert ds.is_deepspeed_zero3_enabled()
    after = read_topology().engine
import msgspec
with open(f"{sys.argv[1]}/{before.rank}", "w") as file:
    json.dump({"before": msgspec.to_builtins(before), "after": after}, file)
"""


def launched(folder: Path, *command: str, more: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    script = folder / "tell.py"
    script.write_text(TELL)
    done = subprocess.run(
        [sys.executable, "-m", *command, str(script), str(folder), *more],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(path.read_text()) for path in sorted(folder.glob("[0-9]"))]


def test_what_torchrun_really_sets(tmp_path: Path) -> None:
    found = launched(
        tmp_path, "torch.distributed.run", "--standalone", "--nproc_per_node=2", more=("deepspeed",)
    )
    assert [each["before"]["rank"] for each in found] == [0, 1]
    assert {each["before"]["engine"] for each in found} == {"ddp"}
    assert all(each["before"]["local_world_size"] == 2 for each in found)
    assert {each["after"] for each in found} == {"zero3"}


CONFIG = """
compute_environment: LOCAL_MACHINE
distributed_type: FSDP
fsdp_config: {fsdp_version: 2, fsdp_cpu_ram_efficient_loading: true, fsdp_activation_checkpointing: true}
mixed_precision: bf16
num_machines: 1
num_processes: 2
machine_rank: 0
main_process_port: 0
use_cpu: true
"""


@pytest.mark.slow
def test_what_accelerate_launch_really_sets(tmp_path: Path) -> None:
    """Its config file arrives in the environment whole, so that it needn't be read."""
    config = tmp_path / "accelerate.yaml"
    config.write_text(CONFIG)
    found = launched(
        tmp_path, "accelerate.commands.launch", "--config_file", str(config), more=("accelerator",)
    )
    assert [each["before"]["rank"] for each in found] == [0, 1]
    for each in found:
        before = each["before"]
        assert (before["engine"], before["reads_once"], before["checkpoints_activations"]) == (
            "fsdp2",
            True,
            True,
        )
        assert "ACCELERATE_USE_FSDP" in before["read_from"]["engine"]
        assert each["after"] == "ddp"  # on CPUs accelerate 1.15 runs DDP whatever its launcher says


@pytest.mark.slow
def test_accelerate_launch_on_a_cpu_starts_one_process(tmp_path: Path) -> None:
    """With --cpu and without a config, accelerate 1.15 starts a single process, and sets no ranks."""
    found = launched(tmp_path, "accelerate.commands.launch", "--cpu", "--num_processes", "2")
    assert len(found) == 1
    assert found[0]["before"]["world_size"] == 1
