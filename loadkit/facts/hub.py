"""A checkpoint on the Hub, through huggingface_hub: one question for the commit, small files, and byte ranges of headers.

HF_ENDPOINT, HF_HUB_OFFLINE, HF_HOME, tokens and progress bars are honoured because huggingface_hub does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loadkit.errors import Problem
from loadkit.facts.contents import problem
from loadkit.facts.folder import FolderFiles
from loadkit.facts.unreadable import UnreadableError

__all__ = ["HubFiles", "find_repository"]

COMMIT = re.compile(r"[0-9a-f]{40}")
HEAD = 100_000
"""Bytes asked for at once at the start of a weight file: nearly all headers fit in them."""


class HubFiles:
    """The files of a repository at one commit.

    Parameters:
        repository: its id.
        commit: the commit.
        sizes: path to bytes.
        token: the Hub token.
        cache_dir: where files are cached.
    """

    def __init__(
        self,
        repository: str,
        commit: str,
        sizes: Mapping[str, int],
        token: str | bool | None,
        cache_dir: str | None,
    ) -> None:
        self.repository = repository
        self.commit = commit
        self.where = f"{repository} at {commit[:12]}"
        self.sizes = sizes
        self._about: dict[str, Any] = {"revision": commit, "token": token}
        self._cache_dir = cache_dir
        self._heads: dict[str, bytes] = {}

    def content(self, name: str) -> bytes:
        """All of a small file, through the cache."""
        from huggingface_hub import hf_hub_download

        with _explained(self.repository, self.commit):
            return Path(
                hf_hub_download(self.repository, name, cache_dir=self._cache_dir, **self._about)
            ).read_bytes()

    def span(self, name: str, start: int, stop: int) -> bytes:
        """Some bytes of a weight file: from the cache if it is there, else by a range request."""
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(
            self.repository, name, cache_dir=self._cache_dir, revision=self.commit
        )
        if isinstance(cached, str):
            with open(cached, "rb") as file:
                file.seek(start)
                return file.read(stop - start)
        if stop <= HEAD:
            if name not in self._heads:
                self._heads[name] = self._range(name, 0, min(HEAD, self.sizes[name]))
            if stop <= len(self._heads[name]) or self.sizes[name] <= HEAD:
                return self._heads[name][start:stop]
        return self._range(name, start, stop)

    def _range(self, name: str, start: int, stop: int) -> bytes:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils._headers import build_hf_headers
        from huggingface_hub.utils._http import get_session, hf_raise_for_status

        headers = {**build_hf_headers(token=self._about["token"]), "Range": f"bytes={start}-{stop - 1}"}
        with (
            _explained(self.repository, self.commit),
            get_session().stream(
                "GET",
                hf_hub_url(self.repository, name, revision=self.commit),
                headers=headers,
                follow_redirects=True,
            ) as response,
        ):
            hf_raise_for_status(response)
            if response.status_code == 206:
                content = response.read()
            else:  # a server that ignores ranges would send the whole file: take what is needed and hang up
                content = _first(response.iter_bytes(), stop)[start:]
        return bytes(content[: stop - start])


def find_repository(
    repository: str, revision: str, *, token: str | bool | None, cache_dir: str | None, local_files_only: bool
) -> HubFiles | _Snapshot | Problem:
    """Find a repository and resolve its revision to a commit, once; from the cache where the Hub isn't to be asked.

    Parameters:
        repository: its id.
        revision: branch, tag or commit; "" for the default branch.
        token: the Hub token.
        cache_dir: where files are cached.
        local_files_only: don't ask the Hub.

    Returns:
        Its files, or why they can't be had.
    """
    from huggingface_hub import HfApi, constants

    if local_files_only or constants.is_offline_mode():
        why = "local_files_only was given" if local_files_only else "HF_HUB_OFFLINE is set"
        return _cached(repository, revision, cache_dir) or _not_cached(repository, revision, why)
    try:
        with _explained(repository, revision):
            info = HfApi().model_info(repository, revision=revision or None, files_metadata=True, token=token)
    except UnreadableError as error:
        snapshot = (
            _cached(repository, revision, cache_dir) if error.problem.code == "hub-unreachable" else None
        )
        return snapshot or error.problem
    sizes = {sibling.rfilename: int(sibling.size or 0) for sibling in info.siblings or ()}
    _remember(repository, revision or "main", str(info.sha), cache_dir)
    return HubFiles(repository, str(info.sha), sizes, token, cache_dir)


class _Snapshot(FolderFiles):
    """A cached commit, read as the folder it is."""

    def __init__(self, folder: Path, repository: str) -> None:
        super().__init__(folder)
        self.commit = folder.name
        self.where = f"{repository} at {folder.name[:12]} (cached)"


def _storage(repository: str, cache_dir: str | None) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(cache_dir or constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model")


def _cached(repository: str, revision: str, cache_dir: str | None) -> _Snapshot | None:
    storage = _storage(repository, cache_dir)
    reference = storage / "refs" / (revision or "main")
    commit = (
        revision
        if COMMIT.fullmatch(revision)
        else reference.read_text().strip()
        if reference.is_file()
        else ""
    )
    snapshot = storage / "snapshots" / commit
    return _Snapshot(snapshot, repository) if commit and snapshot.is_dir() else None


def _remember(repository: str, revision: str, commit: str, cache_dir: str | None) -> None:
    """Write the branch's commit into the cache, as huggingface_hub does when it is asked for a branch.

    loadkit asks for commits only, so that without this the branch couldn't be resolved offline afterwards.
    """
    if COMMIT.fullmatch(revision):
        return
    reference = _storage(repository, cache_dir) / "refs" / revision
    try:
        if not reference.is_file() or reference.read_text() != commit:
            reference.parent.mkdir(parents=True, exist_ok=True)
            reference.write_text(commit)
    except OSError:
        return  # a read-only cache serves as it is


def _not_cached(repository: str, revision: str, why: str) -> Problem:
    at = f" at {revision!r}" if revision else ""
    return problem(
        "offline-not-cached",
        f"you asked for {repository!r}{at}; {why}, and the cache doesn't have it",
        "go online once to fetch it, or name a folder",
    )


@contextmanager
def _explained(repository: str, revision: str) -> Iterator[None]:
    """Turn huggingface_hub's exceptions into problems. None of the messages has the token or a URL with one."""
    from huggingface_hub import errors

    at = f" at {revision!r}" if revision else ""
    asked = f"you asked for {repository!r}{at}"
    try:
        yield
    except errors.GatedRepoError as error:
        raise _unreadable(
            "gated",
            f"{asked}, which is gated, and this account may not read it",
            "accept the conditions on the model's page, then log in with `hf auth login` or pass token=…",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise _unreadable(
            "no-such-repository",
            f"{asked}: no folder here is called so, and {_endpoint()} has no such repository, or hides a private one",
            "check the name (owner/name); for a private repository log in with `hf auth login` or pass token=…",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise _unreadable(
            "no-such-revision",
            f"{asked}: the repository is there, but it has no such revision",
            "name one of its branches, tags or commits",
        ) from error
    except errors.OfflineModeIsEnabled as error:
        raise UnreadableError(_not_cached(repository, revision, "HF_HUB_OFFLINE is set")) from error
    except errors.LocalEntryNotFoundError as error:
        raise _unreadable(
            "hub-unreachable",
            f"{asked}: {_endpoint()} couldn't be reached, and the cache lacks a file",
            _UNREACHABLE,
        ) from error
    except errors.EntryNotFoundError as error:
        raise _unreadable(
            "missing-file", f"{asked}: a file that the repository lists can't be had", "try again later"
        ) from error
    except errors.HFValidationError as error:
        raise _unreadable(
            "no-such-repository",
            f"{asked}, which can't be the name of a repository",
            "a Hub id looks like owner/name",
        ) from error
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", "an error")
        raise _unreadable(
            "hub-unreachable", f"{asked}: {_endpoint()} answered {status}", _UNREACHABLE
        ) from error
    except Exception as error:
        if not _is_transport(error):
            raise
        raise _unreadable(
            "hub-unreachable",
            f"{asked}: {_endpoint()} couldn't be reached ({type(error).__name__})",
            _UNREACHABLE,
        ) from error


_UNREACHABLE = "check the network and HF_ENDPOINT; HF_HUB_OFFLINE=1 uses what is cached"


def _unreadable(code: str, message: str, remedy: str) -> UnreadableError:
    return UnreadableError(problem(code, message, remedy))


def _is_transport(error: Exception) -> bool:
    """Whether it comes from the network: the HTTP client's own kinds, whichever client huggingface_hub uses."""
    return isinstance(error, OSError) or type(error).__module__.split(".")[0] in (
        "httpx",
        "httpx2",
        "httpcore",
        "requests",
    )


def _endpoint() -> str:
    from huggingface_hub import constants

    return re.sub(r"^https?://([^@/]*@)?", "", constants.ENDPOINT)


def _first(chunks: Iterator[bytes], count: int) -> bytes:
    content = b""
    for chunk in chunks:
        content += chunk
        if len(content) >= count:
            break
    return content
