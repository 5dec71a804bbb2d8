"""One rank's failure ends all ranks, with the cause, in time; no rank hangs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from forks import Forks
from ranks.faults import FAULTS, FAULTY
from ranks.launch import Launched, launch

LIMIT = 60.0
"""Seconds in which every rank must have ended, imports included."""

WREN = """import loadkit

@loadkit.hookimpl
def loadkit_workarounds(plan):
    return []
"""

DIFFERENT = "RankError: the ranks of this launch wouldn't load the same: "


@pytest.fixture(scope="module")
def folders(tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folders")
    for name, seed in (("own", 0), ("other", 1), ("cut", 0)):
        shutil.copytree(tiny("mistral", seed=seed), folder / name)
    weights = folder / "cut" / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 1000)
    for version in ("1", "2"):
        about = folder / f"site-{version}" / f"loadkit_wren-{version}.0.dist-info"
        about.mkdir(parents=True)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: loadkit-wren\nVersion: {version}.0\n")
        (about / "entry_points.txt").write_text("[loadkit]\nwren = loadkit_wren\n")
        (about.parent / "loadkit_wren.py").write_text(WREN)
    return folder


@pytest.fixture(scope="module")
def launched(folders: Path, forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Launched:
    done = launch("faults:faults", 2, tmp_path_factory.mktemp("faults"), folders, launcher=forks)
    assert sorted(done.results) == [0, 1], done.output
    return done


def errors(launched: Launched, name: str) -> dict[int, str]:
    return {rank: found["errors"][name] for rank, found in launched.results.items()}


@pytest.mark.parametrize("name", FAULTS)
def test_no_fault_takes_long(name: str, launched: Launched) -> None:
    """The stated limit of the feature, not a measurement: a hang would be a half-hour."""
    assert all(found["seconds"][name] < LIMIT for found in launched.results.values())


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("damaged", "PlanError: can't load"),
        ("out_of_memory", "does-not-fit"),
        ("loading", "LoadError: this rank's disk is gone"),
        ("interrupted", "KeyboardInterrupt: "),
    ],
)
def test_a_failure_is_raised_on_every_rank(name: str, cause: str, launched: Launched) -> None:
    raised = errors(launched, name)
    assert cause in raised[FAULTY]
    assert "RankError" not in raised[FAULTY]
    assert raised[0].startswith(f"RankError: rank {FAULTY} failed: ")
    assert cause in raised[0]


def test_a_damaged_file_is_named(launched: Launched) -> None:
    assert "model.safetensors" in errors(launched, "damaged")[0]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("other_checkpoint", "  - file checkpoint/model.safetensors: rank 0: "),
        ("other_option", "  - decision attention: rank 0: sdpa; rank 1: eager\n"),
        ("other_plugin", "  - plugin wren: rank 0: loadkit-wren 1.0; rank 1: loadkit-wren 2.0\n"),
    ],
)
def test_a_difference_is_refused_on_every_rank(name: str, line: str, launched: Launched) -> None:
    raised = errors(launched, name)
    assert raised[0] == raised[1]
    assert raised[0].startswith(DIFFERENT)
    assert line in raised[0]


def test_folders_of_their_own_are_no_difference(launched: Launched) -> None:
    """Only what they hold is: the error of other weights names no path."""
    assert "location" not in errors(launched, "other_checkpoint")[0]


def test_what_one_rank_finds_fails_all(launched: Launched) -> None:
    raised = errors(launched, "audited")
    assert raised[0] == raised[1]
    assert raised[0].startswith("AuditError")
    assert f"rank {FAULTY}: this rank's memory is odd" in raised[0]


def test_afterwards_all_is_well(launched: Launched) -> None:
    assert errors(launched, "nothing") == {0: "", 1: ""}


@pytest.mark.slow
def test_a_rank_that_is_joining_learns_the_cause(folders: Path, forks: Forks, tmp_path: Path) -> None:
    """It is stopped wherever it is by then, and never sees by what."""
    done = launch("faults:joining", 2, tmp_path, folders / "own", launcher=forks)
    assert sorted(done.results) == [0, 1], done.output
    assert all("auto-under-launcher" in error for error in done.results[0]), done.results[0]
    assert all(error.startswith("RankError: rank 0 failed: PlanError") for error in done.results[1]), (
        done.results
    )


def test_the_cause_is_known_before_the_store_goes(folders: Path, forks: Forks, tmp_path: Path) -> None:
    done = launch("faults:parting", 2, tmp_path, folders / "own", launcher=forks)
    assert done.results[0].startswith("LoadError: this rank's disk is gone"), done.output
    assert done.results[1].startswith("RankError: rank 0 failed: LoadError: this rank's disk is gone")


@pytest.mark.parametrize("who", [0, 1])
def test_a_dead_rank_is_noticed(who: int, folders: Path, forks: Forks, tmp_path: Path) -> None:
    """Rank 0 keeps the store: with it, that is gone."""
    done = launch(
        "faults:death", 2, tmp_path, folders / "own", who, launcher=forks, LOADKIT_RANKS_SILENCE="4"
    )
    other = 1 - who
    assert list(done.results) == [other], done.output
    raised = done.results[other]
    assert raised["error"].startswith("RankError: ")
    assert ("the store that" in raised["error"]) == (who == 0)
    assert f"rank {who}" in raised["error"]
    assert raised["seconds"] < LIMIT
