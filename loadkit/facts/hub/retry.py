"""Waiting for a Hub that throttles or is briefly down, where huggingface_hub doesn't.

huggingface_hub 2.4 waits and asks again for the metadata of files and for ranges. It doesn't where it asks for what a
repository holds, and not for 502, 503 and 504 in answer to a download.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

__all__ = ["DOWN", "THROTTLED", "patiently", "wished_wait"]

T = TypeVar("T")

DOWN = (502, 503, 504)
THROTTLED = 429

PAUSES = (1.0, 2.0, 4.0)
"""Seconds before each further attempt, where the Hub doesn't say how long to wait."""

LONGEST = 120.0
"""Seconds: whoever is asked to wait longer should decide that, not a load that seems to hang."""


def patiently(
    call: Callable[[], T],
    *,
    statuses: tuple[int, ...] = DOWN,
    errors: tuple[type[Exception], ...] = (),
) -> T:
    """Call something that asks the Hub, again after a wait while the Hub says that it can't answer now.

    Parameters:
        call: what asks.
        statuses: statuses that are worth another attempt.
        errors: exceptions that are, too.

    Returns:
        What the call returns.

    Raises:
        Exception: what the call raised last.
    """
    for pause in PAUSES:
        try:
            return call()
        except Exception as error:
            wished = wished_wait(error)
            if wished > LONGEST or not (_status(error) in statuses or isinstance(error, errors)):
                raise
            wait = max(pause, wished)
        time.sleep(wait)  # outside of the handler: what follows has nothing to do with this error
    return call()


def wished_wait(error: BaseException) -> float:
    """Seconds that the Hub asks to wait (Retry-After); 0 where it doesn't say."""
    response = getattr(error, "response", None)
    said = response.headers.get("retry-after", "").strip() if response is not None else ""
    return float(said) if said.isdecimal() else 0.0


def _status(error: BaseException) -> int:
    return int(getattr(getattr(error, "response", None), "status_code", 0))
