"""A Hub on this machine: enough of its protocol over real HTTP for the real huggingface_hub client.

    with HubServer() as hub:
        commit = hub.add("owner/name", folder)
        ...                        # HF_ENDPOINT is hub.url
        hub.bytes_of("model.safetensors")

It serves folders as the commits of repositories, asks for tokens where told to, and keeps a record of every
answer.
"""

from __future__ import annotations

import hashlib
import json
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Literal
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

__all__ = ["Answer", "Fault", "HubServer", "point_to"]

_CHUNK = 16_384
_LFS = (".bin", ".model", ".safetensors")
"""Names that the Hub keeps in its large file storage: their etag is the SHA-256 of their content."""


@dataclass
class Answer:
    """One request and what was sent back; `sent` counts bytes of the body, before they are written."""

    method: str
    path: str
    status: int
    sent: int
    token: str
    host: str
    range: str


@dataclass(frozen=True)
class _Blob:
    path: Path
    size: int
    etag: str

    @property
    def lfs(self) -> bool:
        return self.path.name.endswith(_LFS)


@dataclass(frozen=True)
class Fault:
    """What goes wrong with an answer.

    Parameters:
        path: what the path of the request must hold.
        methods: the requests it is for.
        times: how many of them; -1 for all.
        status: refuse with it; 0 to send the file.
        retry_after: seconds to ask to wait, with a status.
        cut: break the connection off after so many bytes of the body.
        reset: break it off with a reset, as a firewall does, rather than with an end.
        shorten: send so many bytes less, and call that the length.
        garble: send other bytes of the same length.
        pause: seconds between pieces of 16 KiB.
    """

    path: str = "/"
    methods: tuple[str, ...] = ("HEAD", "GET")
    times: int = 1
    status: int = 0
    retry_after: int | None = None
    cut: int | None = None
    reset: bool = False
    shorten: int = 0
    garble: bool = False
    pause: float = 0.0


@dataclass
class _Repository:
    access: Literal["open", "gated", "private"] = "open"
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, _Blob]] = field(default_factory=dict)

    def commit(self, revision: str) -> str | None:
        if revision in self.branches:
            return self.branches[revision]
        return next((c for c in self.commits if len(revision) >= 7 and c.startswith(revision)), None)


class HubServer:
    """The server; it runs while the context is open, on a free port of the loopback interface.

    Attributes:
        url: what HF_ENDPOINT must be.
        answers: everything sent so far, oldest first.
        tokens: the tokens it knows; they open every repository.
        failing: a status to answer requests with; 0 for none.
        failing_on: what a path must hold to be answered so; "/" for all.
        ignores_ranges: whether files are sent whole whatever range is asked for, as some proxies do.
        drops: how many of the next ranged answers break off in the middle of their body.
        is_no_hub: whether it answers everything with a web page.
        faults: what goes wrong next; the first that fits a request is used.
        storage: the host and port that large files are redirected to, as the Hub does; "" to send them
            itself.
    """

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.tokens: set[str] = set()
        self.failing = 0
        self.failing_on = "/"
        self.ignores_ranges = False
        self.drops = 0
        self.is_no_hub = False
        self.faults: list[Fault] = []
        self.storage = ""
        self._used: dict[int, int] = {}
        self._after: list[tuple[str, Callable[[], object]]] = []
        self._lock = threading.Lock()
        self.repositories: dict[str, _Repository] = {}
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self._http.block_on_close = False  # idle connections of the client's pool needn't end first
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        self.port = self._http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def add(
        self,
        repository: str,
        folder: Path,
        *,
        branch: str = "main",
        access: Literal["open", "gated", "private"] = "open",
    ) -> str:
        """Make a folder the newest commit of a branch, and return the commit's hash."""
        blobs = {
            path.relative_to(folder).as_posix(): _Blob(path, path.stat().st_size, _etag(path))
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        named = [(branch, repository), *((name, blob.etag) for name, blob in blobs.items())]
        commit = hashlib.sha1(repr(named).encode()).hexdigest()
        found = self.repositories.setdefault(repository, _Repository())
        found.access = access
        found.branches[branch] = commit
        found.commits[commit] = blobs
        return commit

    def bytes_of(self, name: str) -> int:
        """Bytes sent so far of files of that name, over all repositories."""
        return sum(a.sent for a in self.answers if a.path.endswith(f"/{name}"))

    def after(self, path: str, do: Callable[[], object]) -> None:
        """Do something once, right after a request whose path holds that has been answered."""
        self._after.append((path, do))

    def fault(self, method: str, path: str) -> Fault:
        """The fault of this request, one of its times used up; an empty one for none."""
        with self._lock:
            for fault in self.faults:
                used = self._used.get(id(fault), 0)
                if fault.path in path and method in fault.methods and used != fault.times:
                    self._used[id(fault)] = used + 1
                    return fault
        return Fault()

    def blob(self, etag: str) -> _Blob | None:
        """A large file by its hash, of whatever commit."""
        every = (
            b for r in self.repositories.values() for blobs in r.commits.values() for b in blobs.values()
        )
        return next((b for b in every if b.lfs and b.etag == etag), None)

    def answered(self, path: str) -> None:
        """Do what was to be done after this request."""
        with self._lock:
            due = [pair for pair in self._after if pair[0] in path]
            self._after = [pair for pair in self._after if pair not in due]
        for _, do in due:
            do()


def _etag(path: Path) -> str:
    """As the Hub has it: SHA-256 of large files, git's own hash of the others.

    A file that isn't all there, such as one that `os.truncate` made, is told apart by name and length: its
    gigabytes of nothing aren't read.
    """
    found = path.stat()
    if found.st_blocks * 512 < found.st_size // 2:
        return hashlib.sha256(f"{path} {found.st_size}".encode()).hexdigest()
    data = path.read_bytes()
    if path.name.endswith(_LFS):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _handler(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(_Handler):
        pass

    Handler.hub = hub
    return Handler


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    fault: Fault
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        pass

    def do_HEAD(self) -> None:
        self.do()

    def do_GET(self) -> None:
        self.do()

    def do(self) -> None:
        self.fault = self.hub.fault(self.command, self.path)
        self.route()
        self.hub.answered(self.path)

    @property
    def token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def route(self) -> None:
        """Answer a request. The path is cut before it is unquoted: revisions may hold quoted slashes."""
        if self.hub.failing and self.hub.failing_on in self.path:
            return self.refuse(self.hub.failing)
        if self.fault.status:
            return self.refuse(self.fault.status)
        if self.hub.is_no_hub:
            return self.send(200, b"<html>hello</html>", {"Content-Type": "text/html"})
        if self.token and self.token not in self.hub.tokens:
            return self.refuse(401, message="Invalid credentials in Authorization header")
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        if parts[0] == "lfs":
            stored = self.hub.blob(parts[1])
            return self.send_file(stored) if stored else self.refuse(404)
        api = parts[:2] == ["api", "models"]
        parts = parts[2:] if api else parts
        words = ("revision", "refs", "tree") if api else ("resolve",)
        cut = next((i for i, part in enumerate(parts) if i and part in words), len(parts))
        name, rest = "/".join(parts[:cut]), parts[cut:]
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.access == "private" and not self.token):
            return self.refuse(404 if self.token else 401, "RepoNotFound", "Repository not found")
        if rest[:1] == ["refs"]:
            return self.send_refs(repository)
        revision = rest[1] if len(rest) > 1 else "main"
        commit = repository.commit(revision)
        if commit is None:
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if not rest or rest[0] == "revision":
            return self.send_info(name, repository, commit)
        if repository.access == "gated" and not self.token:
            return self.refuse(401, "GatedRepo", f"Access to model {name} is restricted.")
        if rest[0] == "tree":
            return self.send_tree(repository.commits[commit], "/".join(rest[2:]))
        blob = repository.commits[commit].get("/".join(rest[2:]))
        if blob is None:
            return self.refuse(404, "EntryNotFound", "Entry not found", commit=commit)
        return self.send_file(blob, commit)

    def send_info(self, name: str, repository: _Repository, commit: str) -> None:
        siblings = [
            {"rfilename": file, "size": blob.size, "blobId": blob.etag}
            | ({"lfs": {"sha256": blob.etag, "size": blob.size, "pointerSize": 134}} if blob.lfs else {})
            for file, blob in repository.commits[commit].items()
        ]
        gated = "auto" if repository.access == "gated" else False
        self.send_json({"id": name, "sha": commit, "gated": gated, "siblings": siblings})

    def send_refs(self, repository: _Repository) -> None:
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit}
            for name, commit in repository.branches.items()
        ]
        self.send_json({"branches": branches, "tags": [], "converts": []})

    def send_tree(self, blobs: dict[str, _Blob], inside: str) -> None:
        """List a folder: what lies right in it, or all below it where the client asks for that."""
        start = f"{inside}/" if inside else ""
        below = {name: blob for name, blob in blobs.items() if name.startswith(start)}
        if not below:
            self.refuse(404, "EntryNotFound", f"{inside} does not exist")
            return
        deep = "recursive=true" in urlsplit(self.path).query.lower()
        listed = {n: b for n, b in below.items() if deep or "/" not in n.removeprefix(start)}
        folders = {start + n.removeprefix(start).split("/")[0] for n in below.keys() - listed.keys()}
        self.send_json(
            [{"type": "directory", "path": name, "oid": ""} for name in sorted(folders)]
            + [{"type": "file", "path": n, "size": b.size, "oid": b.etag} for n, b in listed.items()]
        )

    def send_file(self, blob: _Blob, commit: str = "") -> None:
        headers = {"ETag": f'"{blob.etag}"', "Accept-Ranges": "bytes"}
        if commit:
            headers["X-Repo-Commit"] = commit
        if commit and blob.lfs and self.hub.storage:
            headers["X-Linked-ETag"], headers["X-Linked-Size"] = headers.pop("ETag"), str(blob.size)
            headers["Location"] = f"http://{self.hub.storage}/lfs/{blob.etag}"
            self.send(302, b"", headers)
            return
        wanted = self.headers.get("Range", "")
        start, stop, status = 0, blob.size, 200
        if wanted.startswith("bytes=") and not self.hub.ignores_ranges:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, stop, status = int(first), min(int(last or blob.size) + 1, blob.size), 206
            if start >= blob.size:
                self.refuse(416)
                return
            if self.hub.drops:
                self.hub.drops -= 1
                self.close_connection = True
                self.send(status, _pieces(blob.path, start, stop // 2), headers, stop - start)
                return
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{blob.size}"
        stop -= self.fault.shorten
        self.send(status, self.spoilt(_pieces(blob.path, start, stop)), headers, stop - start)

    def spoilt(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        """The pieces of a file, with what goes wrong with them."""
        sent, fault = 0, self.fault
        for piece in pieces:
            kept = piece if fault.cut is None else piece[: max(fault.cut - sent, 0)]
            sent += len(kept)
            yield kept[::-1] if fault.garble and sent > len(kept) else kept
            if len(kept) < len(piece):
                self.close_connection = True
                if fault.reset:
                    with socket.socket(fileno=self.connection.detach()) as connection:
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return
            if fault.pause:
                threading.Event().wait(fault.pause)  # not time.sleep, which tests replace

    def send_json(self, value: object) -> None:
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def refuse(self, status: int, code: str = "", message: str = "", commit: str = "") -> None:
        wait = "" if self.fault.retry_after is None else str(self.fault.retry_after)
        named = {
            "X-Error-Code": code,
            "X-Error-Message": message,
            "X-Repo-Commit": commit,
            "Retry-After": wait,
        }
        self.send(status, b"{}", {key: value for key, value in named.items() if value})

    def send(
        self,
        status: int,
        body: bytes | Iterator[bytes],
        headers: dict[str, str],
        length: int | None = None,
    ) -> None:
        """Record an answer and send it; counting stops where the client hangs up."""
        path, host = urlsplit(self.path).path, self.headers.get("Host", "")
        answer = Answer(self.command, path, status, 0, self.token, host, self.headers.get("Range", ""))
        self.hub.answers.append(answer)  # first, so that a client that has its answer finds it recorded
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body) if isinstance(body, bytes) else length))
        try:
            self.end_headers()
            if self.command != "HEAD":
                for piece in [body] if isinstance(body, bytes) else body:
                    answer.sent += len(piece)
                    self.wfile.write(piece)
        except ConnectionError:
            self.close_connection = True


def _pieces(path: Path, start: int, stop: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(start)
        while start < stop and (piece := file.read(min(_CHUNK, stop - start))):
            start += len(piece)
            yield piece


def point_to(patch: pytest.MonkeyPatch, url: str, home: Path) -> None:
    """Make huggingface_hub use another Hub and home.

    It reads its environment once, when it is imported, and another test may have done that: so the constants
    that it computed are replaced. `test_the_environment_is_honoured` shows, in a fresh process, that the
    variables do it.
    """
    patch.setattr(constants, "ENDPOINT", url)
    hub = sys.modules.get("transformers.utils.hub")
    if hasattr(
        hub, "_hf_api"
    ):  # a newer transformers keeps a client of its own, with the Hub that it first asked
        patch.setattr(hub, "_hf_api", None)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setattr(constants, "HF_HOME", str(home))
    patch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    patch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    if hasattr(constants, "AGENT_HARNESSES_PATH"):  # of newer huggingface_hubs
        patch.setattr(constants, "AGENT_HARNESSES_PATH", str(home / "agent_harnesses.json"))
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.delenv("HF_TOKEN", raising=False)
    patch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
