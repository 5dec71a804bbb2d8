"""The built site in a real browser, wide and narrow: nothing is cut off, nothing complains, every link leads
somewhere."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag

import pytest
from docs.browser import CHROMIUM, NARROW, WIDE, Page, chromium, served

ROOT = Path(__file__).parent.parent.parent

CUT_OFF = """(() => {
  const wide = document.documentElement.clientWidth, found = [];
  const scrolls = e => ["auto", "scroll"].includes(getComputedStyle(e).overflowX);
  const held = e => { for (let p = e.parentElement; p; p = p.parentElement) if (scrolls(p)) return true; return false; };
  if (document.documentElement.scrollWidth > wide) found.push("the page is " + document.documentElement.scrollWidth + " wide");
  for (const e of document.querySelectorAll("article, article *")) {
    const box = e.getBoundingClientRect(), style = getComputedStyle(e);
    if (!box.width || !box.height || held(e)) continue;
    const name = e.tagName + " " + (e.textContent || e.src || "").trim().slice(0, 60);
    if (box.right > wide + 1 || box.left < -1) found.push(name + " ends at " + box.right);
    const cuts = ["hidden", "clip"].includes(style.overflowX) && e.scrollWidth > e.clientWidth + 1;
    if (cuts && !e.closest(".md-ellipsis, .headerlink, .md-clipboard, button, svg")) found.push(name + " is cut off");
  }
  for (const e of document.images) {
    if (!e.complete || !e.naturalWidth) found.push("no picture: " + e.src);
    else if (e.closest("article") && e.getBoundingClientRect().width < 0.6 * e.naturalWidth && wide < 600)
      found.push("too small to be read: " + e.src);
  }
  return found;
})()"""
"""What can't be seen whole, and isn't in something that scrolls."""

LINKS = """[...document.querySelectorAll("a[href]")].map(a => a.href).filter(h => h.startsWith(location.origin))"""
IDS = """[...document.querySelectorAll("[id]")].map(e => e.id)"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("mkdocs isn't installed: pip install '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here (Debian: apt-get install chromium)")
    with chromium() as page:
        yield page


def test_the_site_can_be_read(site: Path, page: Page) -> None:
    faults: list[str] = []
    links: dict[str, set[str]] = {}
    ids: dict[str, set[str]] = {}
    with served(site) as address:
        for file in sorted(site.rglob("index.html")):
            where = f"{address}/{file.parent.relative_to(site).as_posix()}/".replace("/./", "/")
            page.look(WIDE)
            page.open(where)
            name = where.removeprefix(address)
            for width, dark in ((WIDE, False), (NARROW, False), (NARROW, True)):
                page.look(width, dark=dark)
                faults += [f"{name} at {width}: {each}" for each in page.evaluate(CUT_OFF)]
            faults += [f"{name}: {each}" for each in page.errors()]
            links[where] = set(page.evaluate(LINKS))
            ids[where] = set(page.evaluate(IDS))
        assert len(ids) > 60
        for where, targets in links.items():
            faults += [
                f"{where.removeprefix(address)}: {fault}"
                for each in sorted(targets)
                if (fault := _dead(each, address, site, ids))
            ]
    assert not faults, "\n".join(faults)


def _dead(link: str, address: str, site: Path, ids: dict[str, set[str]]) -> str:
    """Why a link of the site's own leads nowhere; "" where it doesn't."""
    target, anchor = urldefrag(link)
    file = site / unquote(target.removeprefix(address)).lstrip("/")
    if not (file.is_file() or (file / "index.html").is_file()):
        return f"there is no {target.removeprefix(address)}"
    if anchor and unquote(anchor) not in ids.get(target, {""}) | {"__toc"}:
        return f"{target.removeprefix(address)} has no #{anchor}"
    return ""


BAD: dict[str, tuple[str, str]] = {
    "wide": ('<article><div style="width: 3000px">wide</div></article>', "wide ends at"),
    "clipped": ('<article><p style="overflow: hidden; width: 9em; white-space: nowrap">much too long a line for it</p></article>', "is cut off"),
    "no picture": ('<article><img src="/nowhere.png"></article>', "no picture"),
    "small": ("<article><img style='width: 90px' src=\"data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' width='900' height='9'/>\"></article>", "too small"),
}  # fmt: skip


@pytest.mark.parametrize("fault", BAD)
def test_what_is_wrong_is_seen(fault: str, page: Page, tmp_path: Path) -> None:
    body, said = BAD[fault]
    (tmp_path / "index.html").write_text(
        f"<!doctype html><meta name=viewport content='width=device-width'>{body}"
    )
    page.look(NARROW)
    with served(tmp_path) as address:
        page.open(address)
        assert any(said in each for each in page.evaluate(CUT_OFF))
        assert any("nowhere.png" in each for each in page.errors()) == (fault == "no picture")


def test_what_scrolls_is_whole(page: Page, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text(
        "<!doctype html><meta name=viewport content='width=device-width'><link rel=icon href='data:,'>"
        '<article><div style="overflow-x: auto"><div style="width: 3000px">x</div></div></article>'
        "<script>console.error('so it says'); later()</script>"
    )
    page.look(NARROW)
    with served(tmp_path) as address:
        page.open(address)
        assert page.evaluate(CUT_OFF) == []
        said: list[Any] = page.errors()
    assert len(said) == 2
    assert "later is not defined" in "".join(said)
    assert _dead(f"{address}/gone/", address, tmp_path, {})
    assert _dead(f"{address}/#there", address, tmp_path, {f"{address}/": {"here"}})
    assert not _dead(f"{address}/#here", address, tmp_path, {f"{address}/": {"here"}})
