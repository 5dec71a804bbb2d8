"""Files of a repository brought into huggingface_hub's cache, whole and with the bytes that the Hub promised.

huggingface_hub 2.4 checks the length of what it downloads, and resumes within a process, but compares no
hash: other bytes of the right length would be loaded. So each large file is hashed once, right after its
download. A core hashes 1.5 GB/s, more than most networks bring; what is in the cache already isn't read
again.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from loadkit.errors import Problem
from loadkit.facts.checkpoint.config_files import read_each
from loadkit.facts.checkpoint.source import checkpoint_problem
from loadkit.facts.hub.hub_cache import repository_cache, snapshot_folder
from loadkit.facts.hub.problems import hub_host, hub_problem
from loadkit.facts.hub.retry import DOWN, THROTTLED, with_retries
from loadkit.schema.request import Token

__all__ = ["SnapshotDownload"]

_SHA256 = re.compile(r"[0-9a-f]{64}")
_CHUNK = 1 << 22
_WORKERS = 8


class SnapshotDownload:
    """A repository at a commit, and how to bring its files here.

    Parameters:
        location: its id.
        commit: the commit.
        token: as huggingface_hub takes it.
        cache_dir: the cache; huggingface_hub's own by default.
    """

    def __init__(
        self,
        location: str,
        commit: str,
        *,
        token: Token = None,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        self.location = location
        self.commit = commit
        self._token = token
        self._cache = repository_cache(location, cache_dir)
        self._failed: Problem | None = None

    @property
    def folder(self) -> Path:
        """Where its files lie in the cache, once they are there."""
        return Path(snapshot_folder(self._cache, self.commit).location)

    def missing(self, names: Iterable[str]) -> list[str]:
        """Those of the files that the cache lacks."""
        cached = snapshot_folder(self._cache, self.commit)
        return [name for name in names if cached.size(name) is None]

    def listed(self) -> list[str] | Problem:
        """Every file that the commit has."""
        from huggingface_hub import HfApi, constants

        try:
            info = with_retries(
                lambda: HfApi().model_info(
                    self.location,
                    revision=self.commit,
                    token=self._token,
                    timeout=constants.HF_HUB_ETAG_TIMEOUT,
                ),
                statuses=(THROTTLED, *DOWN),
            )
        except Exception as error:  # told by the caller, with what was being loaded
            return hub_problem(error, self.location, self.commit)
        return [sibling.rfilename for sibling in info.siblings or ()]

    def fetch(self, names: Iterable[str]) -> list[Problem]:
        """Download the files that the cache lacks, several at a time.

        Returns:
            What went wrong, each cause once.
        """
        results = read_each(_WORKERS, self.missing(names), self._fetch)
        return list(dict.fromkeys(problem for _, problem in results if problem))

    def _fetch(self, name: str) -> Problem | None:
        from huggingface_hub import HfApi

        if self._failed:
            return self._failed
        try:
            path = with_retries(
                lambda: HfApi().hf_hub_download(
                    self.location,
                    name,
                    revision=self.commit,
                    token=self._token,
                    cache_dir=self._cache.parent,
                ),
                errors=("ReadError",),  # a reset connection, which huggingface_hub doesn't resume after
            )
        except Exception as error:  # as in `listed`
            self._failed = hub_problem(error, self.location, self.commit)
            return self._failed  # and the next file isn't asked for, with all its waits
        return _damaged(self.location, name, Path(path))


def _damaged(location: str, name: str, path: Path) -> Problem | None:
    """Compare a file with the hash that names it in the cache, its etag.

    Etags of small files are git's, and some mirrors put others there: those say nothing about the bytes.
    Where the cache has no links (Windows without the right to make them) no name tells the hash.
    """
    blob = path.resolve()
    if not _SHA256.fullmatch(blob.name):
        return None
    digest = hashlib.sha256()
    with blob.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    if digest.hexdigest() == blob.name:
        return None
    for found in (path, blob):
        found.unlink(missing_ok=True)  # otherwise the next load would take it from the cache
    return checkpoint_problem(
        "damaged-download",
        f"{name} of {location!r}, as {hub_host()} sent it, isn't the file that its hash names: expected SHA-256 "
        f"{blob.name[:12]}…, got {digest.hexdigest()[:12]}…",
        "load again: the damaged file has been removed from the cache; if it comes again, a proxy or mirror (HF_ENDPOINT) "
        "changes it",
    )
