"""Floors stand in `pyproject.toml`: whatever else names one says the same, and a stack's file holds each.

Read from the file itself: what an installation keeps of it may be of an older one.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from loadkit.cli.known_issues import KNOWN_ISSUES

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CALLED = {"PEFT": "peft", "huggingface_hub": "huggingface-hub", "TRL": "trl", "Python": "python"}
NAMED = re.compile(r"\b([A-Za-z][\w-]*) (\d+(?:\.\d+)+)")
NOT_RUN = {"torch": "the mirrors of the machines that tested have wheels of 2.13 alone that need no GPU"}
"""Floors that no run stands behind, and why: the docs say so too."""


def floors_of(requirements: list[str]) -> dict[str, str]:
    found = {}
    for requirement in map(Requirement, requirements):
        for bound in requirement.specifier:
            assert bound.operator == ">=", f"{requirement} is no floor: others' pins may lie above it"
            found[requirement.name] = bound.version
    return found


FLOORS = floors_of(PROJECT["dependencies"]) | {
    "python": PROJECT["requires-python"].removeprefix(">="),
    "trl": floors_of(PROJECT["optional-dependencies"]["test"])["trl"],
}


def named_in(text: str) -> dict[str, str]:
    """Packages with a version in a text, under the names of their distributions."""
    return {CALLED.get(name, name): version for name, version in NAMED.findall(" ".join(text.split()))}


def pins() -> dict[str, Version]:
    lines = (ROOT / "tests" / "stacks" / "oldest.txt").read_text(encoding="utf-8").splitlines()
    pinned = (line.partition(";")[0].split("==") for line in lines if "==" in line)
    return {name: Version(version) for name, version in pinned}


def test_the_readme_names_the_floors() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    sentence = re.search(r"\*\*What it needs\*\*: (.*?) or newer;", readme, re.DOTALL)
    assert sentence is not None
    said = named_in(sentence[1])
    assert {"python", "transformers", "torch", "peft", "bitsandbytes", "accelerate"} <= set(said)
    assert said == {name: FLOORS[name] for name in said}


def test_the_page_on_dependencies_names_them() -> None:
    page = (ROOT / "docs" / "explanation" / "dependencies.md").read_text(encoding="utf-8")
    table = dict(re.findall(r"^\| `([\w-]+)` \| ([\d.]+) \|", page, re.MULTILINE))
    assert table == {name: version for name, version in FLOORS.items() if name != "trl"}
    for name, reason in NOT_RUN.items():
        assert f"{name}'s floor isn't proved: {reason}" in " ".join(page.split())


def test_the_oldest_stack_is_every_floor() -> None:
    expected = {n: Version(v) for n, v in FLOORS.items() if n not in (*NOT_RUN, "python")}
    assert {name: version for name, version in pins().items() if name in expected} == expected


def test_remedies_for_an_old_transformers_ask_for_the_floor() -> None:
    remedies = {issue.code: issue.remedy for issue in KNOWN_ISSUES}
    assert remedies["transformers-4"] == f"pip install 'transformers>={FLOORS['transformers']}'"
    machine = ROOT / "loadkit" / "cli" / "explanations" / "machine.toml"
    explained = tomllib.loads(machine.read_text(encoding="utf-8"))
    assert remedies["transformers-4"] in explained["transformers-4"]
