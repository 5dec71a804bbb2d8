"""A checkpoint in a repository on the Hub, or in the cache that huggingface_hub keeps of it.

Everything goes through huggingface_hub, so that HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE, HF_TOKEN, proxies and
progress bars work as everywhere else. The repository is asked once for its commit, which serves everything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

import msgspec

from loadkit.errors import Problem
from loadkit.facts.checkpoint.folder import read_part
from loadkit.facts.checkpoint.source import Access, CheckpointFiles
from loadkit.facts.hub.hub_cache import find_snapshot, not_cached, remember, repository_cache, snapshot_folder
from loadkit.facts.hub.pinned_commits import agreed_commit, note_commit
from loadkit.facts.hub.problems import hub_host, hub_problem
from loadkit.facts.hub.retry import DOWN, THROTTLED, with_retries
from loadkit.schema.request import Token
from loadkit.text.suggest import nearest_name, some_of

__all__ = ["HubRepository", "open_repository"]

_RANGE_PAUSES = (0.25, 0.5)
"""Seconds before a broken answer to a range is asked for again."""

_WHOLE_REPOSITORY = frozenset(
    {"gated", "no-access", "bad-token", "hub-unreachable", "no-such-repository", "cache-unwritable"}
)
"""Problems that every further file of the repository would have too."""


def open_repository(
    repository: str, revision: str, access: Access
) -> tuple[CheckpointFiles | None, list[Problem]]:
    """Find out which commit a repository is at, and which files it has; None where there are none to read.

    A snapshot that stands in for an unreachable Hub comes with a warning.
    """
    from huggingface_hub import HfApi, constants, is_offline_mode

    cache = repository_cache(repository, access.cache_dir)
    wanted = agreed_commit(repository, revision) or revision
    if access.local_files_only or is_offline_mode():
        why = "local_files_only is set" if access.local_files_only else "HF_HUB_OFFLINE is set"
        snapshot = find_snapshot(cache, repository, revision, wanted, why)
        return (snapshot, []) if snapshot else (None, [not_cached(cache, repository, revision, why)])
    if access.progress:
        access.progress(f"asking {hub_host()} about {repository}")
    try:
        info = with_retries(
            lambda: HfApi().model_info(
                repository,
                revision=wanted or None,
                files_metadata=True,
                token=access.token,
                timeout=constants.HF_HUB_ETAG_TIMEOUT,
            ),
            statuses=(THROTTLED, *DOWN),
        )
    except Exception as error:  # whatever it is, it is reported beside the other problems of the request
        problem = hub_problem(error, repository, revision)
        if problem.code == "no-such-revision":
            problem = _with_refs(problem, repository, revision, access.token)
        if problem.code != "hub-unreachable":
            return None, [problem]
        snapshot = find_snapshot(cache, repository, revision, wanted, problem.message)
        if snapshot is None:
            return None, [problem]
        used = f"the cached commit {snapshot.commit[:12]} is used, though there may be a newer one"
        message = f"{problem.message}; {used}"
        return snapshot, [msgspec.structs.replace(problem, severity="warning", message=message)]
    if not info.sha:
        return None, [hub_problem(ValueError("no commit"), repository, revision)]
    remember(cache, revision or constants.DEFAULT_REVISION, info.sha)
    note_commit(repository, revision, info.sha)
    sizes = {s.rfilename: -1 if s.size is None else s.size for s in info.siblings or ()}
    return HubRepository(repository, revision, info.sha, sizes, token=access.token, cache=cache), []


class HubRepository:
    """A repository at one commit. Small files go into its cache, of weight files only ranges are read."""

    kind: Literal["folder", "hub", "store"] = "hub"
    workers = 8
    first_bytes = 65_536

    def __init__(
        self,
        location: str,
        revision: str,
        commit: str,
        sizes: Mapping[str, int],
        *,
        token: Token,
        cache: Path,
    ) -> None:
        self.location = location
        self.revision = revision
        self.commit = commit
        self.sizes = dict(sorted(sizes.items()))
        self._token = token
        self._cache_dir = cache.parent
        self._cached = snapshot_folder(cache, commit)
        self._failed: Problem | None = None

    def __str__(self) -> str:
        return f"repository {self.location!r} at commit {self.commit[:12]}"

    def size(self, name: str) -> int | None:
        """Bytes of a file: those in the cache where it is cached, because that copy will be loaded."""
        if name not in self.sizes:
            return None
        cached = self._cached.size(name)
        return self.sizes[name] if cached is None else cached

    def read(self, name: str) -> bytes | Problem:
        """A whole small file, through the cache."""
        from huggingface_hub import HfApi

        if self._cached.size(name) is not None:
            return self._cached.read(name)
        if self._failed:
            return self._failed
        try:
            path = with_retries(
                lambda: HfApi().hf_hub_download(
                    self.location, name, revision=self.commit, token=self._token, cache_dir=self._cache_dir
                )
            )
        except Exception as error:  # reported, as in open_repository
            return self._problem(error)
        return read_part(path)

    def read_range(self, name: str, start: int, stop: int) -> bytes | Problem:
        """Bytes `start` to `stop` (exclusive), from the cache or by a ranged request."""
        if self._cached.size(name) is not None:
            return self._cached.read_range(name, start, stop)
        if self._failed:
            return self._failed
        if self.sizes.get(name) == 0 or stop <= start:
            return b""  # a range of nothing is an error in HTTP
        try:
            # Retries of failures while the body is read can't be left to http_stream_backoff: they reach its
            # generator as thrown exceptions, and it would yield twice.
            return with_retries(
                lambda: self._fetch(name, start, stop),
                statuses=(),
                errors=("TransportError",),
                pauses=_RANGE_PAUSES,
            )
        except Exception as error:  # reported, as in open_repository
            return self._problem(error)

    def refusals(self) -> list[Problem]:
        """What is cached of it is looked at: a repository itself has no links."""
        return self._cached.refusals()

    def absent(self, names: Iterable[str], otherwise: Problem) -> Problem:
        """The Hub listed every file: what isn't among them doesn't exist."""
        return otherwise

    def _problem(self, error: Exception) -> Problem:
        problem = hub_problem(error, self.location, self.revision)
        if problem.code in _WHOLE_REPOSITORY:
            self._failed = problem
        return problem

    def _fetch(self, name: str, start: int, stop: int) -> bytes:
        from huggingface_hub import constants, hf_hub_url
        from huggingface_hub.utils import (  # type: ignore[attr-defined]  # exported lazily
            build_hf_headers,
            hf_raise_for_status,
            http_stream_backoff,
        )

        with http_stream_backoff(
            "GET",
            hf_hub_url(self.location, name, revision=self.commit),
            headers={
                **build_hf_headers(token=self._token),
                "Range": f"bytes={start}-{stop - 1}",
                "Accept-Encoding": "identity",
            },
            timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
            max_retries=2,
            retry_on_exceptions=(),
        ) as response:
            hf_raise_for_status(response)
            # A server or proxy that ignores ranges sends the file from its beginning; reading stops early.
            skip = 0 if response.status_code == 206 else start
            body = bytearray()
            for chunk in response.iter_bytes():
                body += chunk
                if len(body) >= skip + stop - start:
                    break
            return bytes(body[skip : skip + stop - start])


def _with_refs(problem: Problem, repository: str, revision: str, token: Token) -> Problem:
    """Add the branches and tags that there are, if the Hub tells."""
    from huggingface_hub import HfApi

    try:
        refs = HfApi().list_repo_refs(repository, token=token)
    except Exception:  # the problem is clear without them
        return problem
    names = [ref.name for ref in (*refs.branches, *refs.tags)]
    hint = nearest_name(revision, names)
    return msgspec.structs.replace(
        problem,
        message=f"{problem.message}; it has {some_of(names) or 'no branches'}",
        remedy=(f"did you mean {hint!r}? " if hint else "") + problem.remedy,
    )
