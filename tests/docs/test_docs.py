"""The docs are true: their snippets run, their reference is what the code says, and their links lead somewhere."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
BLOCK = re.compile(r"```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)```", re.DOTALL)
PAGES_THAT_RUN = (
    "tutorial/first-load.md",
    "tutorial/first-plugin.md",
    "how-to/adapters.md",
    "how-to/bring-an-architecture.md",
    "how-to/choose-a-profile.md",
    "how-to/dpo.md",
    "how-to/many-processes.md",
    "how-to/move-to-loadkit.md",
    "how-to/qlora-with-trl.md",
    "how-to/repeat-a-load.md",
    "how-to/see-if-it-fits.md",
    "how-to/tensor-parallel.md",
    "how-to/tokens-and-templates.md",
    "how-to/vision-language.md",
)


def generator():
    spec = importlib.util.spec_from_file_location("generate_docs", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# trl 1.16 sets gradient_checkpointing, which transformers 5.23 calls activation_checkpointing.
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing.*is deprecated:FutureWarning")
@pytest.mark.parametrize("page", PAGES_THAT_RUN)
def test_a_page_works_when_typed_in(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if page.startswith("how-to"):
        (tmp_path / "my-mistral").symlink_to(tiny("mistral"))
        (tmp_path / "my-gemma3").symlink_to(tiny("gemma3"))
    namespace: dict[str, object] = {"__name__": "__main__"}
    ran = 0
    for language, title, code in BLOCK.findall((DOCS / page).read_text(encoding="utf-8")):
        if title:
            (tmp_path / title).write_text(code, encoding="utf-8")
        elif language == "python":
            exec(compile(code, page, "exec"), namespace)
            ran += 1
        elif language == "sh":
            done = subprocess.run(code, shell=True, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            ran += 1
    assert ran


def test_the_reference_is_fresh() -> None:
    assert generator().stale() == [], "run python docs/generate.py"


def test_every_hook_is_documented() -> None:
    from loadkit import hookspecs

    for name, hook in vars(hookspecs).items():
        if name.startswith("loadkit_"):
            text = hook.__doc__ or ""
            assert "Returns" in text, name
            parameters = hook.__code__.co_varnames[: hook.__code__.co_argcount]
            for parameter in parameters:
                assert f"{parameter}: " in text, f"{name} doesn't say what {parameter} is"


def test_every_hook_is_implemented_or_tested() -> None:
    from loadkit import PluginManager, hookspecs

    implemented = {hook for plugin in PluginManager(environ={}).plugins for hook in plugin.hooks}
    in_tests = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "tests").rglob("*.py"))
    for name in vars(hookspecs):
        if name.startswith("loadkit_"):
            assert name in implemented or f"def {name}(" in in_tests, name


def test_links_lead_somewhere() -> None:
    pages = [*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    for page in pages:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if not target.startswith(("http:", "https:")):
                assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"


def test_the_readme_shows_what_is_printed() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for placeholder in ("\nPLAN\n", "\nPROBLEMS\n", "\nPROFILES\n"):
        assert placeholder not in text
