"""A cache of its own for each test here, which is on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from loadkit.plugins import Entries


@pytest.fixture(autouse=True)
def entries(
    tmp_path: Path, own_cache: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Entries]:
    from loadkit_plugins.quantized_cache.writer import finish_writing

    monkeypatch.setenv("LOADKIT_QUANTIZED_CACHE", "1")
    monkeypatch.setenv("LOADKIT_CACHE", str(own_cache(tmp_path / "loadkit")))
    monkeypatch.delenv("LOADKIT_CACHE_MAX", raising=False)
    yield Entries()
    finish_writing()
