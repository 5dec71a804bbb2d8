"""What the pages name is there: files and folders, tests, and dotted names of the packages."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadkit.cli.command_plugins import GROUP
from loadkit.facts.library.registrations import GROUP as ATTENTION

ROOT = Path(__file__).parent.parent.parent
DISTRIBUTIONS = sorted((ROOT / "plugins").glob("*/README.md"))
PAGES = [
    *sorted((ROOT / "docs").rglob("*.md")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "tests/benchmarks/README.md")),
    *DISTRIBUTIONS,
]
NAMED = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())

PATH = re.compile(r"(?<![\w./-])(?:loadkit|loadkit_\w+|plugins|tests|docs)/(?:[\w-]+/)*(?:[\w-]+(?:\.\w+)*)?")
TEST = re.compile(r"((?:tests|plugins)/[\w./-]+\.py)::(\w+)")
DOTTED = re.compile(r"(?<![\w./@-])(?:loadkit|loadkit_plugins)(?:\.[A-Za-z_]\w*)+")
IMPORT = re.compile(r"^from (loadkit(?:_plugins)?(?:\.\w+)*) import (?:\(([^)]*)\)|(.+))$", re.MULTILINE)
STANDS_FOR_ANY = re.compile(r"\.NAME\b")


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def missing_paths(page: Path, text: str) -> list[str]:
    """Paths that a page names, and that lead nowhere from the repository's root or from the page's own
    folder."""
    named = {match.group().rstrip("/") for match in PATH.finditer(text)}
    return sorted(name for name in named if not any((at / name).exists() for at in (ROOT, page.parent)))


def functions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def missing_tests(text: str) -> list[str]:
    return [
        f"{file}::{name}"
        for file, name in TEST.findall(text)
        if not (ROOT / file).is_file() or name not in functions(ROOT / file)
    ]


def resolves(dotted: str) -> bool:
    """Whether a name is a module, or an attribute of one, or of that, or a group of entry points. Modules
    that load torch aren't imported."""
    if dotted in (GROUP, ATTENTION):
        return True
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        module = ".".join(parts[:length])
        if length == 1 or _is_module(module):
            rest = parts[length:]
            value: object = importlib.import_module(module) if rest else None
            for name in rest:
                if not hasattr(value, name):
                    return False
                value = getattr(value, name)
            return True
    return False


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # what comes before the last dot is no package
        return False


def dotted_names(text: str) -> Iterator[str]:
    yield from (name for name in DOTTED.findall(STANDS_FOR_ANY.sub("", text)))
    for module, in_brackets, in_line in IMPORT.findall(text):
        names = re.sub(r"#.*", "", in_brackets or in_line)
        yield from (f"{module}.{name.split(' as ')[0].strip()}" for name in names.split(",") if name.strip())


@NAMED
def test_paths_that_are_named_exist(page: Path) -> None:
    assert missing_paths(page, text_of(page)) == []


@NAMED
def test_tests_that_are_named_exist(page: Path) -> None:
    assert missing_tests(text_of(page)) == []


@NAMED
def test_dotted_names_resolve(page: Path) -> None:
    assert [name for name in sorted(set(dotted_names(text_of(page)))) if not resolves(name)] == []


def test_what_is_gone_would_be_noticed() -> None:
    """Places of before the house, each of which some page named."""
    told = "`loadkit/phases.py`, tests/core/test_faults.py; (see `benchmarks/`, docs/generate.py) plugins/loadkit-torchao/tests"
    assert missing_paths(ROOT / "README.md", told) == ["loadkit/phases.py", "tests/core/test_faults.py"]
    assert missing_tests("`tests/docs/test_names.py::test_gone`, `tests/gone.py::test_names`") == [
        "tests/docs/test_names.py::test_gone",
        "tests/gone.py::test_names",
    ]
    code = "from loadkit.facts import beside\nfrom loadkit import Claim, Gone  # here\nloadkit.options.Option, loadkit.Plan.from_json"
    assert [name for name in dotted_names(code) if not resolves(name)] == [
        "loadkit.options.Option",
        "loadkit.facts.beside",
        "loadkit.Gone",
    ]


# --- Traps

TRAPS = text_of(ROOT / "docs" / "explanation" / "traps.md")
SECTIONS = re.split(r"^## (?=\d+\. )", TRAPS, flags=re.MULTILINE)[1:]
NUMBERS = [int(section.partition(".")[0]) for section in SECTIONS]


def test_traps_are_numbered_without_a_gap() -> None:
    assert list(range(1, len(NUMBERS) + 1)) == NUMBERS
    assert len(NUMBERS) >= 30


@pytest.mark.parametrize("section", SECTIONS, ids=map(str, NUMBERS))
def test_a_trap_says_what_holds_it(section: str) -> None:
    _, does, held = re.split(r"^\*\*(?:loadkit|Held by)\*\* ", section, flags=re.MULTILINE)
    assert does.strip()
    assert TEST.search(held) or "No test" in held


def test_tests_cite_traps_that_are_there() -> None:
    cited: dict[int, list[str]] = {}
    for folder in ("loadkit", "plugins", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            for numbers in re.findall(r"\bTRAPS ((?:\d+(?:, | and )?)+)", text_of(path)):
                for number in re.findall(r"\d+", numbers):
                    cited.setdefault(int(number), []).append(path.relative_to(ROOT).as_posix())
    assert len(cited) > 20
    assert {number: paths for number, paths in cited.items() if number not in NUMBERS} == {}
