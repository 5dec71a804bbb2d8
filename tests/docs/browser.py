"""A headless Chromium by its own protocol, over two pipes: no driver and no package in between.

`python tests/docs/browser.py SITE OUT [PAGE …]` takes screenshots of a built site's pages, wide and narrow,
light and dark, to look at.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

__all__ = ["CHROMIUM", "NARROW", "WIDE", "Page", "chromium", "served"]

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
"""The program, where there is one."""

WIDE, NARROW = 1400, 400
"""Widths to look at, in pixels."""

FLAGS = (
    *("--headless", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
    *("--hide-scrollbars", "--no-first-run", "--disable-background-networking", "--disable-component-update"),
)
HEIGHT = 900
PATIENCE = 120
"""Seconds without a word after which the browser counts as hung."""

LONGEST = 6000
"""Pixels of a page that a screenshot shows."""


class Page:
    """A tab: what it is told, and what it says.

    Parameters:
        to, of: the files that commands go to and answers come from.
    """

    def __init__(self, to: int, of: int) -> None:
        self._to, self._of, self._left, self._id = to, of, b"", 0
        self._session = ""
        self.events: list[dict[str, Any]] = []
        tab = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=tab, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> Any:
        """The answer to a command; events that come before it are kept.

        Raises:
            RuntimeError: the browser refuses.
        """
        self._id += 1
        message = {"id": self._id, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            said = self._next()
            if said.get("id") == self._id:
                if "error" in said:
                    raise RuntimeError(f"{method}: {said['error']}")
                return said["result"]
            self.events.append(said)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._left:
            if not select.select([self._of], [], [], PATIENCE)[0]:
                raise RuntimeError(f"the browser has said nothing for {PATIENCE} s")
            read = os.read(self._of, 1 << 16)
            if not read:
                raise RuntimeError("the browser has gone")
            self._left += read
        said, _, self._left = self._left.partition(b"\0")
        return dict(json.loads(said))

    def open(self, address: str) -> None:
        """Go to a page, and wait until it is loaded."""
        self.events.clear()
        self.call("Page.navigate", url=address)
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def look(self, width: int, *, dark: bool = False, height: int = HEIGHT) -> None:
        """Be so wide, on a system that likes it light or dark."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def evaluate(self, script: str) -> Any:
        """What an expression of JavaScript comes to; a promise is waited for."""
        done = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in done:
            raise RuntimeError(str(done["exceptionDetails"]))
        return done["result"].get("value")

    def errors(self) -> list[str]:
        """What the page has complained of since it was opened."""
        found = []
        for event in self.events:
            about = event.get("params", {})
            if event.get("method") == "Runtime.exceptionThrown":
                found.append(str(about["exceptionDetails"].get("exception", about)["description"]))
            elif event.get("method") == "Log.entryAdded" and about["entry"]["level"] == "error":
                found.append(f"{about['entry']['text']} {about['entry'].get('url', '')}")
            elif event.get("method") == "Runtime.consoleAPICalled" and about["type"] in ("error", "assert"):
                found.append(str(about["args"]))
        return found

    def screenshot(self, file: Path, width: int, *, dark: bool) -> None:
        """The page from its top, as long as it is, but for very long ones."""
        self.look(width, dark=dark)
        height = min(int(self.evaluate("document.documentElement.scrollHeight")), LONGEST)
        self.look(width, dark=dark, height=height)
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


@contextmanager
def chromium() -> Iterator[Page]:
    """A browser of its own, with one tab, that ends with the block."""
    assert CHROMIUM is not None
    down, up = os.pipe(), os.pipe()
    theirs = [fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, 10) for each in (down[0], up[1])]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        nowhere = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in (0, 1, 2)]
        pipes = [(os.POSIX_SPAWN_DUP2, given, number) for given, number in zip(theirs, (3, 4), strict=True)]
        process = os.posix_spawn(
            CHROMIUM,
            [CHROMIUM, *FLAGS, f"--user-data-dir={home}"],
            {**os.environ, "HOME": home},
            file_actions=[*nowhere, *pipes],
            setpgroup=0,
        )
        for each in (down[0], up[1], *theirs):
            os.close(each)
        try:
            yield Page(down[1], up[0])
        finally:
            os.killpg(process, signal.SIGKILL)
            os.waitpid(process, 0)
            os.close(down[1])
            os.close(up[0])


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The folder over HTTP: pages in files may not fetch anything. Gives the address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


if __name__ == "__main__":
    site, out = Path(sys.argv[1]), Path(sys.argv[2])
    pages = sys.argv[3:] or [str(f.relative_to(site).parent) for f in sorted(site.rglob("index.html"))]
    out.mkdir(parents=True, exist_ok=True)
    with chromium() as page, served(site) as address:
        for name in pages:
            for width in (WIDE, NARROW):
                for scheme in ("light", "dark"):
                    page.look(width, dark=scheme == "dark")
                    page.open(f"{address}/{name}/")
                    label = name.replace("/", "-").strip(".-") or "home"
                    page.screenshot(out / f"{label}-{width}-{scheme}.png", width, dark=scheme == "dark")
