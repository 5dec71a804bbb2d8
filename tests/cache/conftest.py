"""A cache of its own for each test here."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadkit.plugins import Entries


@pytest.fixture
def entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Entries:
    monkeypatch.setenv("LOADKIT_CACHE", str(tmp_path / "loadkit"))
    monkeypatch.delenv("LOADKIT_CACHE_MAX", raising=False)
    return Entries()
