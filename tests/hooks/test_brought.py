"""What plugins bring beside decisions: recipe dialects, optimizers, accelerators, sections of the report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from distributions import distribution

import loadkit
from loadkit import Plan, PlanError, PluginError, PluginManager, hookimpl
from loadkit.plugins import Dialect, Key, NamedAccelerator, Optimizer, Section, read_dialect

Tiny = Callable[..., Path]

TABLE = """
name = "harness"
source = "base"
markers = ["base", "harness_version"]
nested = ["lora"]
trainer = ["steps", "harness_version"]

[keys]
precision = { option = "dtype", values = { bf16 = "bfloat16", full = "float32" }, only = true }
method = { option = "adapter", only = true, values = { lora = true } }
"lora.rank" = { option = "lora_r", number = true }
"""
RECIPE = "harness_version: 3\nbase: {folder}\nprecision: full\nmethod: lora\nlora:\n  rank: 4\nsteps: 10\n"
MUON = Optimizer(names=("muon",), states=1)
MI300X = NamedAccelerator(
    short="MI300X-192GB", name="AMD Instinct MI300X", memory=192 * 2**30, source="AMD's data sheet"
)

INSTALLED = f'''
from loadkit import hookimpl
from loadkit.plugins import NamedAccelerator, Optimizer, Section, read_dialect

TABLE = """{TABLE}"""

@hookimpl
def loadkit_recipe_dialects():
    return [read_dialect(TABLE)]

@hookimpl
def loadkit_optimizers():
    return [Optimizer(names=("muon",), states=1)]

@hookimpl
def loadkit_accelerators():
    return [NamedAccelerator(short="MI300X-192GB", name="AMD Instinct MI300X", memory=192 * 2**30, source="AMD")]

@hookimpl
def loadkit_report_sections(plan, model):
    return [Section(title="layers", lines=(f"{{model.config.num_hidden_layers}} of them",))]
'''


class Brings:
    """A plugin that declares this."""

    def __init__(self, optimizers: Any = (), accelerators: Any = (), dialects: Any = ()) -> None:
        self.given = optimizers, accelerators, dialects

    @hookimpl
    def loadkit_optimizers(self) -> Sequence[Optimizer]:
        return self.given[0]  # type: ignore[no-any-return]

    @hookimpl
    def loadkit_accelerators(self) -> Sequence[NamedAccelerator]:
        """Machines that aren't here."""
        return self.given[1]  # type: ignore[no-any-return]

    @hookimpl
    def loadkit_recipe_dialects(self) -> Sequence[Dialect]:
        """Recipes of another trainer."""
        return self.given[2]  # type: ignore[no-any-return]


class Tells:
    """A plugin that counts what it knows of."""

    @hookimpl
    def loadkit_report_sections(self, plan: Plan, model: Any) -> Sequence[Section]:
        layers = model.config.num_hidden_layers
        return [
            Section(title="layers", lines=(f"{layers} of them",)),
            Section(title="audit", lines=("mine",)),
        ]


def manager_with(*plugins: tuple[str, object]) -> PluginManager:
    manager = PluginManager(environ={})
    for name, plugin in plugins:
        manager.register(plugin, name)
    return manager


def dialect(**more: Any) -> Dialect:
    made = read_dialect(TABLE)
    return Dialect(**{**{name: getattr(made, name) for name in Dialect.__struct_fields__}, **more})


def test_an_installed_distribution_brings_all_of_them(tiny: Tiny, tmp_path: Path) -> None:
    distribution(tmp_path, "lk-brings", {"lk_brings.py": INSTALLED}, {"brings": "lk_brings"})
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(folder=tiny("mistral")))
    code = (
        "import json, sys, loadkit\n"
        "plan = loadkit.plan(recipe=sys.argv[1], optim='muon')\n"
        "there = loadkit.plan(recipe=sys.argv[1], machine='8xMI300X')\n"
        "print('SAID', json.dumps([plan.dtype, plan.adapter and plan.adapter.options['r'], plan.request.trainer_keys,"
        " [w.code for w in plan.warnings], there.machine]))\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code, str(recipe)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    said = next(line for line in done.stdout.splitlines() if line.startswith("SAID"))
    dtype, rank, trainer, codes, machine = json.loads(said[5:])
    assert (dtype, rank) == ("float32", 4)
    assert "steps" in trainer
    assert "unknown-optimizer" not in codes
    assert "MI300X" in machine


def test_an_optimizer_counts_as_its_plugin_says(tiny: Tiny) -> None:
    manager = manager_with(("muon", Brings(optimizers=[MUON])))
    halved = loadkit.plan(tiny("mistral"), "full", optim="muon", plugin_manager=manager).memory
    whole = loadkit.plan(tiny("mistral"), "full", optim="adamw_torch", plugin_manager=manager).memory
    assert halved is not None
    assert whole is not None
    assert halved.optimizer * 2 == whole.optimizer
    plan = loadkit.plan(tiny("mistral"), "full", optim="muon")
    assert [w.code for w in plan.warnings if "muon" in w.message] == ["unknown-optimizer"]


def test_a_report_has_sections_that_displace_none_of_the_cores(tiny: Tiny) -> None:
    report = loadkit.load(tiny("mistral"), plugin_manager=manager_with(("tells", Tells()))).report
    assert [(s.title, s.plugin) for s in report.sections] == [("layers", "tells"), ("audit", "tells")]
    assert "what was planned is what was loaded" in str(report)
    assert "mine" in str(report)
    assert "what was planned is what was loaded" in report._repr_html_()


TAKEN = {
    "an optimizer": (Brings(optimizers=[Optimizer(names=("mine", "sgd"))]), "'sgd', which 'preparation' has"),
    "an optimizer without a name": (Brings(optimizers=[Optimizer()]), "it has no name"),
    "an accelerator": (
        Brings(accelerators=[NamedAccelerator(short="h100-80GB", name="x", memory=1, source="me")]),
        "'h100-80GB' is one of loadkit's own",
    ),
    "a form of machine": (
        Brings(accelerators=[NamedAccelerator(short="cpu-64GB", name="x", memory=1, source="me")]),
        "isn't a name such as",
    ),
    "a dialect": (Brings(dialects=[dialect(name="trl")]), "'trl' is one of loadkit's own"),
    "a dialect's marker": (Brings(dialects=[dialect(markers=("base_model",))]), "is a key of .*'s recipes"),
    "a trainer's key": (Brings(dialects=[dialect(markers=("load_in_4bit",))]), "is a key of .*'s recipes"),
    "no marker": (Brings(dialects=[dialect(markers=())]), "markers: keys that only it has"),
    "another type": (Brings(dialects=[Key()]), "loadkit_recipe_dialects gave"),
}


@pytest.mark.parametrize("what", TAKEN)
def test_names_stay_their_owners(what: str) -> None:
    plugin, words = TAKEN[what]
    with pytest.raises(PluginError, match=words):
        manager_with(("takes", plugin))


def test_what_two_bring_breaks_only_who_asks_for_it(tiny: Tiny) -> None:
    one, other = Brings([MUON], [MI300X], [dialect()]), Brings([MUON], [MI300X], [dialect()])
    manager = manager_with(("one", one), ("other", other))
    assert loadkit.plan(tiny("mistral"), "full", plugin_manager=manager).dtype == "bfloat16"
    for options in ({"optim": "muon"}, {"machine": "8xMI300X"}):
        with pytest.raises(PlanError, match=r"one.*other"):
            loadkit.plan(tiny("mistral"), "full", plugin_manager=manager, **options)


def test_loadkits_short_names_mean_what_they_did(tiny: Tiny) -> None:
    more = NamedAccelerator(short="H100-96GB", name="NVIDIA H100 96GB", memory=96 * 2**30, source="me")
    manager = manager_with(("more", Brings(accelerators=[more])))
    for spec, name in (("8xH100", "80GB"), ("8xH100-96GB", "96GB")):
        plan = loadkit.plan(tiny("mistral"), machine=spec, plugin_manager=manager)
        assert name in plan.machine


def test_two_dialects_that_claim_a_recipe_are_told(tiny: Tiny, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(folder=tiny("mistral")))
    manager = manager_with(
        ("one", Brings(dialects=[dialect()])), ("other", Brings(dialects=[dialect(name="rig")]))
    )
    with pytest.raises(PlanError, match="could be of 'harness' or 'rig'"):
        loadkit.plan(recipe=recipe, plugin_manager=manager)
    found, problems = loadkit.read_recipe(
        recipe, plugin_manager=manager_with(("one", Brings(dialects=[dialect()])))
    )
    assert found is not None
    assert (found.dialect, found.options, problems) == (
        "harness",
        {"adapter": True, "dtype": "float32", "lora_r": 4},
        [],
    )
