"""A folder of a web server, which lists nothing: the files that checkpoints have are asked for by name."""

from __future__ import annotations

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

from loadkit.plugins import Source, SourceError, SourceFile
from loadkit_fsspec.errors import explained
from loadkit_fsspec.files import described

__all__ = ["WebsiteSource"]

NAMES = (
    *("config.json", "generation_config.json", "adapter_config.json", "model.safetensors", "adapter_model.safetensors"),
    *("model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json", "adapter_model.bin"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model"),
    *("vocab.json", "vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "tekken.json"),
    *("chat_template.jinja", "chat_template.json", "processor_config.json", "preprocessor_config.json"),
    "video_preprocessor_config.json",
)  # fmt: skip
"""What checkpoints, adapters, tokenizers and processors are made of."""

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")

MOST_OF_INDEX = 100_000_000
MOST_SHARDS = 5_000


class WebsiteSource(Source):
    """The files below an address. Shards are those that an index names.

    Parameters:
        reference: the folder's address, without a "/" at its end.
    """

    version = "http"

    def __init__(self, reference: str) -> None:
        import fsspec

        self._fs = fsspec.filesystem("http", skip_instance_cache=True, use_listings_cache=False)
        self._reference = reference
        self.files = self._asked_for(NAMES)
        for index in (name for name in INDEXES if name in self.files):
            self.files |= self._asked_for(self._shards(index) - set(self.files))
        if not self.files:
            raise FileNotFoundError(reference)

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """Bytes of a file, by one ranged request; a server that knows no ranges is refused."""
        with explained(self._reference, name):
            found: bytes = self._fs.cat_file(self._address(name), start=start, end=stop)
        if len(found) > stop - start:
            raise SourceError(
                f"the server of {self._reference!r} sends whole files where a part is asked for",
                "serve it by a server that knows ranges (most do), or download the folder",
                "no-ranges",
            )
        return found

    def _asked_for(self, names: Iterable[str]) -> dict[str, SourceFile]:
        """What the server says of those that it has."""
        wanted = sorted(names)
        with ThreadPoolExecutor(8) as pool:
            found = dict(zip(wanted, pool.map(self._described, wanted), strict=True))
        return {name: file for name, file in found.items() if file is not None}

    def _described(self, name: str) -> SourceFile | None:
        try:
            with explained(self._reference):
                about: dict[str, Any] = self._fs.info(self._address(name))
        except SourceError as error:
            if error.code == "no-such-source":
                return None
            raise
        if not isinstance(about.get("size"), int):
            raise SourceError(
                f"the server of {self._reference!r} doesn't say how long {name} is",
                "serve it by a server that sends Content-Length",
                "no-ranges",
            )
        return described(about)

    def _shards(self, index: str) -> set[str]:
        """The files that an index names beside itself; loadkit looks at the index too."""
        size = self.files[index].size
        if size > MOST_OF_INDEX:
            return set()
        try:
            named = set(json.loads(self.read_range(index, 0, size))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return set()
        shards = {
            name
            for name in named
            if isinstance(name, str) and "/" not in name and name not in ("", ".", "..")
        }
        return set(sorted(shards)[:MOST_SHARDS])

    def _address(self, name: str) -> str:
        return f"{self._reference}/{quote(name)}"
