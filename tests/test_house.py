"""The house: where everything lives, which room imports which, and how long a module may be."""

from __future__ import annotations

import re
import shutil
import statistics
import subprocess
from collections.abc import Iterable, Mapping
from copy import deepcopy
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import grimp
import msgspec
import pytest

ROOT = Path(__file__).parent.parent
LOADKIT, PLUGINS, TESTS = ROOT / "loadkit", ROOT / "plugins" / "loadkit_plugins", ROOT / "tests"
PROJECT: Mapping[str, Any] = msgspec.toml.decode((ROOT / "pyproject.toml").read_bytes())
CONTRACTS: list[dict[str, Any]] = PROJECT["tool"]["importlinter"]["contracts"]

FLOORS = {"loadkit", "plugins", "tests", "docs"}
"""The folders at the top."""
DOOR = "plugins"
"""The module of loadkit that is for plugins."""

OPENER = "loadkit.facts.checkpoint.open_source"
OPENING = ("loadkit.facts.hub.repository", "loadkit.facts.stores.open_store")
"""The imports against the grain inside a room: a source is opened as a folder, as a repository, or by a
plugin, and the files of all of them are a checkpoint's."""

LONGEST, MEDIAN = 350, 110
LONG = {LOADKIT / "hooks" / "hookspecs.py"}
"""The manual of the hooks, which is read as one."""


# --- What lies where


def children(package: Path) -> set[str]:
    """The folders and modules of a package."""
    folders = {path.parent.name for path in package.glob("*/__init__.py")}
    return folders | {path.stem for path in package.glob("*.py")} - {"__init__"}


def rooms(package: Path) -> set[str]:
    """Its folders that have code of their own or below."""
    found = {path.parent for path in package.glob("*/__init__.py")}
    return {path.name for path in found if any(p.name != "__init__.py" for p in path.rglob("*.py"))}


def top_folders() -> set[str]:
    """The folders that git knows, or in an unpacked sdist those that are there but for what building
    leaves."""
    if (ROOT / ".git").exists() and shutil.which("git"):
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        found = {path.partition("/")[0] for path in listed.stdout.split("\0") if "/" in path}
    else:
        found = {path.name for path in ROOT.iterdir() if path.is_dir()} - {"build", "dist", "site"}
        found = {name for name in found if not name.endswith(("__pycache__", ".egg-info"))}
    return {name for name in found if not name.startswith(".")}


def test_at_the_top_are_four_folders() -> None:
    assert top_folders() == FLOORS
    shipped = PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    assert {path.strip("/") for path in shipped if "." not in path} == FLOORS


@pytest.mark.parametrize("place", ["", "facts"])
def test_every_room_has_its_tests(place: str) -> None:
    tested = {path.name for path in (TESTS / place).iterdir() if any(path.glob("**/test_*.py"))}
    assert rooms(LOADKIT / place) - tested == set()


# --- Contracts name every room


def contract(**fields: object) -> dict[str, Any]:
    (found,) = (c for c in CONTRACTS if fields.items() <= c.items())
    return found


def test_every_room_has_its_floor() -> None:
    layers = contract(type="layers", containers=["loadkit"])
    named = [name.strip() for floor in layers["layers"] for name in floor.split("|")]
    assert sorted(named) == sorted(children(LOADKIT))
    assert layers["exhaustive"] is True


def test_plugins_are_kept_out_of_every_room() -> None:
    kept_out = contract(type="forbidden", source_modules=["loadkit_plugins"])["forbidden_modules"]
    assert sorted(kept_out) == sorted(f"loadkit.{name}" for name in children(LOADKIT) - {DOOR})


def test_every_plugin_is_independent() -> None:
    announced = PROJECT["project"]["entry-points"]["loadkit"].values()
    plugins = {".".join(module.split(".")[:2]) for module in announced}
    assert sorted(contract(type="independence")["modules"]) == sorted(plugins)
    assert {name.partition(".")[2] for name in plugins} <= children(PLUGINS)


# --- No circles


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    """What imports what at run time, wherever in a module the import stands."""
    return grimp.build_graph("loadkit", "loadkit_plugins", exclude_type_checking_imports=True, cache_dir=None)


def circle(arrows: Mapping[str, Iterable[str]]) -> list[str]:
    """One of the circles; empty where there is none."""
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def among_children(graph: grimp.ImportGraph, package: str) -> dict[str, set[str]]:
    """What a package's folders and modules import of each other."""
    arrows: dict[str, set[str]] = {}
    for child in graph.find_children(package):
        inside = {child, *graph.find_descendants(child)}
        imported = {name for each in inside for name in graph.find_modules_directly_imported_by(each)}
        below = {name.removeprefix(f"{package}.") for name in imported if name.startswith(f"{package}.")}
        arrows[child] = {f"{package}.{name.partition('.')[0]}" for name in below} - {child}
    return arrows


@pytest.mark.parametrize("package", ["loadkit", "loadkit_plugins"])
def test_no_module_imports_itself_in_a_circle(graph: grimp.ImportGraph, package: str) -> None:
    modules = {package, *graph.find_descendants(package)}
    assert len(modules) > 20
    assert circle({m: graph.find_modules_directly_imported_by(m) & modules for m in modules}) == []


def test_no_room_imports_itself_in_a_circle(graph: grimp.ImportGraph) -> None:
    """Neither those of loadkit, nor those inside a room."""
    graph = deepcopy(graph)
    for opened in OPENING:
        assert graph.direct_import_exists(importer=OPENER, imported=opened)
        graph.remove_import(importer=OPENER, imported=opened)
    packages = [m for m in ("loadkit", *graph.find_descendants("loadkit")) if graph.find_children(m)]
    assert {"loadkit", "loadkit.facts", "loadkit.loading", "loadkit.planning"} <= set(packages)
    circles = {package: circle(among_children(graph, package)) for package in packages}
    assert {package: found for package, found in circles.items() if found} == {}


def test_a_circle_is_seen(graph: grimp.ImportGraph) -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}})
    assert "loadkit.schema" in among_children(graph, "loadkit")["loadkit.planning"]


# --- Modules


def modules() -> dict[Path, int]:
    """Every module of the product to its number of lines."""
    found = [*LOADKIT.rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]
    return {p: len(p.read_text(encoding="utf-8").splitlines()) for p in found if "tests" not in p.parts}


def test_modules_are_short() -> None:
    lines = modules()
    too_long = {p.relative_to(ROOT).as_posix(): n for p, n in lines.items() if n > LONGEST and p not in LONG}
    assert too_long == {}
    assert all(lines[path] > LONGEST for path in LONG)
    assert statistics.median(lines.values()) <= MEDIAN


def test_what_is_no_plugin_lies_in_a_plugins_folder() -> None:
    said = "Not a plugin" + " itself"
    files = [
        path
        for folder in FLOORS
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".md", ".txt")
    ]
    assert len(files) > 100
    assert [p.as_posix() for p in files if said in p.read_text(encoding="utf-8")] == []


def test_annotations_can_be_evaluated_by_the_oldest_python() -> None:
    """Python 3.10 evaluates no bare `ClassVar` in a text, and msgspec reads a struct's fields when it first
    converts to it: there every plan failed."""
    sources = [path for top in ("loadkit", "plugins") for path in (ROOT / top).rglob("*.py")]
    bare = [
        path.name for path in sources if re.search(r":\s*ClassVar\s*(=|$)", path.read_text("utf-8"), re.M)
    ]
    assert not bare
