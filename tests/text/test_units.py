"""Bytes and lengths of time, as messages have them."""

from __future__ import annotations

import pytest

from loadkit.text.units import size, span


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (2**20, "1.0 MiB"), (2**30 - 2**20, "1023.0 MiB"),
        (2**30, "1.00 GiB"), (15 * 2**40, "15360.00 GiB"),
    ],
)  # fmt: skip
def test_bytes(count: int, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "less than a minute"), (59.9, "less than a minute"), (60, "1 minute"), (119, "1 minute"), (120, "2 minutes"),
        (3599, "59 minutes"), (3600, "1 hour"), (7200, "2 hours"), (86_399, "23 hours"), (86_400, "1 day"), (10**6, "11 days"),
    ],
)  # fmt: skip
def test_lengths_of_time(seconds: float, text: str) -> None:
    assert span(seconds) == text
