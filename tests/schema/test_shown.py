"""Plans, decisions, memory, reports, manifests and what is loaded: as text, in short, and in a notebook."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import pytest
from examples import A100, planned

import loadkit


class Balanced(HTMLParser):
    """Counts elements, and fails where one is closed that wasn't opened."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.append(tag)
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def loaded(tiny: Any) -> loadkit.Loaded:
    return loadkit.load(tiny("mistral"), "lora")


def test_everything_has_a_text_a_short_form_and_a_table(loaded: loadkit.Loaded) -> None:
    plan, manifest = loaded.plan, loaded.manifest()
    for each in (plan, plan.why("dtype"), plan.memory, loaded.report, manifest, loaded):
        text, short, page = str(each), repr(each), each._repr_html_()  # type: ignore[union-attr]
        assert short.startswith("<")
        assert len(short) < 160
        assert "\n" not in short
        assert text != short
        assert all(line == line.rstrip() for line in text.splitlines())
        found = Balanced(page)
        assert not found.open
        assert "table" in found.seen
        assert "<pre" not in page
    assert str(plan) in str(loaded)
    assert "what was planned is what was loaded" in str(loaded.report).splitlines()[0]
    assert all(name in str(manifest) for name in manifest.files)


def test_reasons_fold_away_and_nothing_is_markup() -> None:
    plan = planned(machine=A100)
    page = plan._repr_html_()
    assert "<details>" in page
    assert plan.why("attention").because.replace(">", "&gt;") in page
    assert " > sdpa" not in page
    assert "color: #" not in page.split("</style>")[0].replace(
        "border-color: #", ""
    )  # the page's own colours


def test_a_decision_reads_like_the_plan() -> None:
    plan = planned(machine=A100)
    assert str(plan.why("dtype")).splitlines()[0] == "dtype: bfloat16"
    for line in str(plan.why("attention")).splitlines()[1:]:
        assert line.strip() in " ".join(plan.explained().split())
