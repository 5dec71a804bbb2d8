"""The map is true: the tree is the folders that are there, the picture is the code's, and every change has
its place."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

from loadkit.hooks import hookspecs
from loadkit.loading.phases import PHASES
from loadkit.schema.stages import STAGES

ROOT = Path(__file__).parent.parent.parent
ARCHITECTURE = (ROOT / "docs" / "explanation" / "architecture.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PICTURE = ROOT / "docs" / "explanation" / "request.svg"
SVG = "{http://www.w3.org/2000/svg}"
Script = Callable[[str], ModuleType]


def packages(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.rglob("__init__.py") if path.parent != folder)


def entry(tree: str, folder: Path, base: Path) -> str:
    """What a tree says of a folder: the line with its name, indented as deep as it lies, and those that go on
    from it."""
    indent = "  " * len(folder.relative_to(base).parts)
    found = re.search(rf"^{indent}{folder.name}/ +(.+(?:\n {{20,}}.+)*)$", tree, re.MULTILINE)
    return " ".join(found.group(1).split()) if found else ""


# --- The tree


@pytest.mark.parametrize("base", ["loadkit", "plugins/loadkit_plugins"])
def test_every_folder_is_in_the_tree_as_it_says_of_itself(base: str) -> None:
    for folder in packages(ROOT / base):
        said = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
        assert said, f"{folder.relative_to(ROOT)}/__init__.py has no docstring"
        line = entry(ARCHITECTURE, folder, ROOT / base)
        first = " ".join(said.partition("\n\n")[0].split())
        assert line, f"{folder.relative_to(ROOT)} isn't in architecture.md: run python docs/generate.py"
        assert first.endswith(line)


def test_what_is_in_the_tree_is_there() -> None:
    tree = re.findall(r"^ +(\w+)(/|\.py) ", ARCHITECTURE, re.MULTILINE)
    assert len(tree) > 40
    known = {
        p.name
        for b in ("loadkit", "plugins", "tests")
        for p in (ROOT / b).rglob("*")
        if p.suffix in ("", ".py")
    }
    assert [name + kind for name, kind in tree if name + kind.rstrip("/") not in known] == []


def test_rooms_are_in_contributing_from_the_ground_up(script: Script) -> None:
    rooms = re.findall(r"^  (\w+)(?:/|\.py) ", CONTRIBUTING, re.MULTILINE)
    floors = script("rooms").floors(ROOT)
    assert rooms == [room for floor in floors for room in floor]
    order = [rooms.index(room) for room in ("text", "schema", "facts", "planning", "loading", "cli")]
    assert order == sorted(order)
    top = {p.stem for p in (ROOT / "loadkit").iterdir() if (p / "__init__.py").is_file() or p.suffix == ".py"}
    assert set(rooms) == top - {"__init__"}


def test_folders_of_tests_are_rooms_or_explained() -> None:
    rooms = {folder.name for folder in (ROOT / "loadkit").iterdir() if (folder / "__init__.py").is_file()}
    explained = set(re.findall(r"^  (\w+)/ ", ARCHITECTURE.partition("\ntests/\n")[2], re.MULTILINE))
    there = {
        path.name for path in (ROOT / "tests").iterdir() if any(path.glob("*.py")) or any(path.glob("*/*.py"))
    }
    assert explained <= there
    assert there - rooms - explained == set()


def test_a_page_without_the_marks_is_noticed(script: Script, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A page\n", encoding="utf-8")
    with pytest.raises(LookupError, match="has no place for rooms"):
        script("generate")._filled(page, {"rooms": lambda root: ""})


# --- The picture


def words() -> list[str]:
    """The texts of the picture, from the top."""
    return [element.text or "" for element in ElementTree.parse(PICTURE).iter(f"{SVG}text")]


def test_the_picture_is_fresh(script: Script) -> None:
    assert script("request_picture").picture() == PICTURE.read_text(encoding="utf-8"), (
        "run python docs/generate.py"
    )


def test_stages_and_phases_are_in_the_picture_in_their_order() -> None:
    numbered = [word.partition("  ") for word in words() if re.match(r"\d+  ", word)]
    runs: list[list[str]] = []
    for number, _, name in numbered:
        if number == "1":
            runs.append([])
        assert int(number) == len(runs[-1]) + 1
        runs[-1].append(name)
    assert [stage.name for stage in STAGES] == runs[0][:-1]
    assert [*(phase.name for phase in PHASES), "finishes"] == runs[-1]


def test_every_hook_is_in_the_picture_once() -> None:
    hooks = [e.text for e in ElementTree.parse(PICTURE).iter(f"{SVG}text") if e.get("class") == "hook"]
    assert sorted(f"loadkit_{hook}" for hook in hooks) == sorted(
        n for n in vars(hookspecs) if n.startswith("loadkit_")
    )


def test_a_hook_without_a_place_is_noticed(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hookspecs, "loadkit_choose_colour", lambda: None, raising=False)
    with pytest.raises(LookupError, match="choose_colour"):
        script("request_picture").steps()


def test_rooms_of_the_picture_are_there() -> None:
    rooms = {
        e.text for e in ElementTree.parse(PICTURE).iter(f"{SVG}text") if "room" in (e.get("class") or "")
    }
    assert len(rooms) > 5
    assert all((ROOT / "loadkit" / str(room) / "__init__.py").is_file() for room in rooms)


# --- Where to change what

CHANGES = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in CONTRIBUTING.partition("## Where do I change")[2].partition("\n## ")[0].splitlines()
    if line.startswith("|")
][2:]
USUAL = ("attention", "option", "quantizer", "memory", "Hub", "recipe", "command", "audit", "engine", "speed")


def test_the_ten_usual_changes_have_a_place() -> None:
    assert [usual for usual in USUAL if not any(usual in what for what, *_ in CHANGES)] == []


@pytest.mark.parametrize("row", CHANGES, ids=[row[0] for row in CHANGES])
def test_a_change_has_files_tests_and_commands(row: list[str]) -> None:
    _, file, tests, run = row
    assert re.search(r"`(?:loadkit|plugins)/", file)
    assert re.search(r"`(?:tests|plugins/[\w-]+/tests)/", tests)
    commands = re.findall(r"`(python -m pytest [^`]+)`", run)
    assert commands
    for command in commands:
        paths = re.findall(r"(?:tests|plugins)/[\w./-]+", command)
        assert paths
        assert all((ROOT / path).exists() for path in paths)
        for word in re.findall(r"-k (\w+)", command):
            assert any(
                re.search(rf"def test_\w*{word}", (ROOT / path).read_text(encoding="utf-8")) for path in paths
            )
