"""Kernels for layers: the package is a fact, and whether they run is read back from the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

import loadkit
from loadkit.facts.machine.machine import Machine, this_machine
from loadkit_plugins.from_pretrained import loadkit_read_back


def machine(version: str | None) -> Machine:
    here = this_machine()
    packages = {name: text for name, text in here.packages.items() if name != "kernels"}
    return msgspec.structs.replace(here, packages={**packages, **({"kernels": version} if version else {})})


@pytest.fixture
def recipe(tiny: Callable[..., Path], tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"base_model: {tiny('mistral')}\nsequence_len: 8\nuse_kernels: true\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("version", "said"), [(None, "isn't installed"), ("0.17.2", "is 0.17.2"), ("0.19.0", "is 0.19.0")]
)
def test_refused_as_transformers_would(recipe: Path, version: str | None, said: str) -> None:
    with pytest.raises(loadkit.PlanError, match=said) as caught:
        loadkit.plan(recipe=recipe, machine=machine(version))
    assert [p.code for p in caught.value.problems if p.severity == "error"] == ["no-kernels"]
    without = loadkit.plan(recipe=recipe, machine=machine(version), model_kwargs={"use_kernels": False})
    assert without.kwargs["use_kernels"] is False


def test_passed_on_as_axolotl_does(recipe: Path, tiny: Callable[..., Path]) -> None:
    plan = loadkit.plan(recipe=recipe, machine=machine("0.18.2"))
    assert (plan.kwargs["use_kernels"], plan.kwargs["allow_all_kernels"]) == (True, True)
    model = loadkit.load(tiny("mistral")).model
    for runs in (True, False):
        model._use_kernels = runs
        read = next(r for r in loadkit_read_back(plan=plan, model=model) if r.where == "model.use_kernels")
        assert (read.planned, read.effective) == (True, runs)
