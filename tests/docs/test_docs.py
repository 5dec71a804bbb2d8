"""The docs are true: their snippets run, their reference is what the code says, and their links lead
somewhere."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from forks import Forks
from stored_formats import store_fp8, store_gguf, store_gptq

import loadkit
from loadkit.hooks import hookspecs

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
BLOCK = re.compile(r"```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)```", re.DOTALL)
OWN_COMMAND = re.compile(r"loadkit [\w ./=-]+( > [\w.-]+)?")
COMMAND = "from loadkit.cli.main import main\nmain(prog_name='loadkit')"
PAGES_THAT_RUN = (
    "tutorial/first-load.md",
    "tutorial/first-plugin.md",
    "how-to/adapters.md",
    "how-to/beside-liger-and-unsloth.md",
    "how-to/bring-an-architecture.md",
    "how-to/check-a-plugin.md",
    "how-to/checkpoints-from-elsewhere.md",
    "how-to/choose-a-profile.md",
    "how-to/company-policy.md",
    "how-to/dpo.md",
    "how-to/finish-a-model.md",
    "how-to/grpo.md",
    "how-to/many-processes.md",
    "how-to/merge.md",
    "how-to/more-than-decisions.md",
    "how-to/move-to-loadkit.md",
    "how-to/out-of-memory.md",
    "how-to/plan-for-a-cluster.md",
    "how-to/qlora-with-trl.md",
    "how-to/quantize-again.md",
    "how-to/repeat-a-load.md",
    "how-to/resume.md",
    "how-to/reward-models.md",
    "how-to/see-if-it-fits.md",
    "how-to/share-on-the-hub.md",
    "how-to/stored-formats.md",
    "how-to/tensor-parallel.md",
    "how-to/tokens-and-templates.md",
    "how-to/vision-language.md",
)

LONG = (
    "how-to/check-a-plugin.md",
    "how-to/many-processes.md",
    "how-to/resume.md",
    "how-to/tensor-parallel.md",
)
"""Pages that start many processes, or train twice: each takes as long as many others together."""


# trl 1.16 sets gradient_checkpointing, which transformers 5.23 calls activation_checkpointing.
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing.*is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "page", [pytest.param(p, marks=pytest.mark.slow) if p in LONG else p for p in PAGES_THAT_RUN]
)
def test_a_page_works_when_typed_in(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Callable[..., Path], forks: Forks
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if page == "how-to/checkpoints-from-elsewhere.md":  # sources are asked only online
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    if page.startswith("how-to"):
        (tmp_path / "my-mistral").symlink_to(tiny("mistral"))
        (tmp_path / "my-gemma3").symlink_to(tiny("gemma3"))
        store_fp8(tmp_path / "my-fp8", tiny("mistral"))
        if page == "how-to/stored-formats.md":
            store_gptq(tmp_path / "my-gptq", tiny("mistral"))
            store_gguf(tmp_path / "my-model.gguf", tiny("llama"))
    namespace: dict[str, object] = {"__name__": "__main__"}
    ran = 0
    for language, title, code in BLOCK.findall((DOCS / page).read_text(encoding="utf-8")):
        if title:
            (tmp_path / title).write_text(code, encoding="utf-8")
        elif language == "python":
            exec(compile(code, page, "exec"), namespace)
            ran += 1
        elif language == "sh":
            for done in _typed(code, forks, tmp_path):
                assert done.returncode == 0, done.stderr
            ran += 1
    assert ran


@pytest.mark.parametrize("page", sorted((DOCS / "how-to").glob("*.md")), ids=lambda page: page.stem)
def test_a_how_to_page_says_what_it_needs(page: Path) -> None:
    """Before its second heading: somebody who lacks it shouldn't have read on."""
    first = "\n## ".join(page.read_text(encoding="utf-8").split("\n## ")[:2])
    assert re.search(r"\b([Yy]ou|They) need\b", first)
    assert str(page.relative_to(DOCS)) in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")


def _typed(code: str, forks: Forks, folder: Path) -> Iterator[subprocess.CompletedProcess[str]]:
    """Commands of loadkit's own in processes that needn't import the libraries; others in a shell."""
    lines = code.splitlines()
    if not all(OWN_COMMAND.fullmatch(line) for line in lines):
        yield subprocess.run(code, shell=True, capture_output=True, text=True, check=False)
        return
    for line in lines:
        command, _, into = line.partition(" > ")
        done = forks.run(COMMAND, *shlex.split(command)[1:], folder=folder)
        if into:
            (folder / into).write_text(done.stdout, encoding="utf-8")
        yield done


def test_what_is_made_is_fresh(script: Callable[[str], ModuleType]) -> None:
    assert script("generate").stale() == [], "run python docs/generate.py"


def test_what_is_stale_is_noticed(
    script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = script("generate")
    hooks = {page: page.read_text(encoding="utf-8") for page in (generate.REFERENCE / "hooks").glob("*.md")}
    gone = hooks.popitem()[0]
    monkeypatch.setattr(generate, "pages", lambda: {**hooks, generate.PICTURE: "another one"})
    assert generate.stale() == [
        "docs/explanation/request.svg",
        f"docs/reference/hooks/{gone.name}",
    ]


HOOKS = {name: hook for name, hook in vars(hookspecs).items() if name.startswith("loadkit_")}


@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_is_documented(name: str) -> None:
    """When it fires, every parameter, the result; and a page in the navigation with an example that is really
    used."""
    hook = HOOKS[name]
    text = hook.__doc__ or ""
    assert "When:" in text
    assert "Returns:" in text
    for parameter in hook.__code__.co_varnames[: hook.__code__.co_argcount]:
        assert f"{parameter}: " in text, f"it doesn't say what {parameter} is"
    page = (DOCS / "reference" / "hooks" / f"{name}.md").read_text(encoding="utf-8")
    assert "**When**" in page
    example = page.partition("## Example")[2]
    assert f"def {name}(" in example
    source = re.findall(r"From `(.+)`:", example)[0]
    assert f"def {name}(" in (ROOT / source).read_text(encoding="utf-8")
    assert f"reference/hooks/{name}.md" in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")


def test_hooks_are_in_the_order_of_their_pages() -> None:
    """That each is exercised too is what tests/hooks/test_faults.py fails without."""
    navigation = re.findall(
        r"reference/hooks/(loadkit_\w+)\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    )
    assert navigation == list(HOOKS)


@pytest.mark.parametrize("name", ["plan", "load"])
def test_an_example_runs(
    name: str, tmp_path: Path, tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my-mistral").symlink_to(tiny("mistral"))
    monkeypatch.chdir(tmp_path)
    page = (DOCS / "reference" / "api.md").read_text(encoding="utf-8")
    section = page.partition(f"\n### `{name}`\n")[2].partition("\n### ")[0]
    (code,) = re.findall(r"\*\*Example\*\*\n\n```python\n(.*?)```", section, re.DOTALL)
    exec(compile(code, name, "exec"), {"loadkit": loadkit})


def test_no_cell_of_a_table_becomes_markup() -> None:
    """attr_list takes {"cpu": "60GiB"} at the end of a cell for attributes of that cell, and swallows it."""
    assert "attr_list" not in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in DOCS.rglob("*.md"):
        assert not re.search(r"\{:? ?[.#]\w", page.read_text(encoding="utf-8")), f"{page} needs attr_list"


def test_links_lead_somewhere() -> None:
    elsewhere = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "tests/benchmarks/README.md")
    pages = [*DOCS.rglob("*.md"), *ROOT.glob("plugins/*/README.md"), *(ROOT / name for name in elsewhere)]
    for page in pages:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if not target.startswith(("http:", "https:")):
                assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"


def test_the_readme_shows_what_is_printed() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for placeholder in ("\nPLAN\n", "\nPROBLEMS\n", "\nPROFILES\n"):
        assert placeholder not in text


def test_benchmarks_write_into_the_page() -> None:
    """`python tests/benchmarks/suite.py` puts its tables between marks of the page, from wherever it is
    called."""
    code = "import figures, suite; print(suite.PAGE, *figures.MARKS, sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT / "tests" / "benchmarks",
        capture_output=True,
        text=True,
        check=True,
    )
    page, *marks = done.stdout.splitlines()
    assert Path(page) == DOCS / "explanation" / "performance.md"
    text = Path(page).read_text(encoding="utf-8")
    assert [text.count(mark) for mark in marks] == [1, 1]
