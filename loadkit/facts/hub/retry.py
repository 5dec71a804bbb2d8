"""Asking the Hub again where it throttles or is briefly down, and huggingface_hub doesn't.

huggingface_hub 2.4 waits and asks again for the metadata of files and for ranges. It doesn't where it asks
what a repository holds, and not for 502, 503 and 504 in answer to a download.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

__all__ = ["DOWN", "THROTTLED", "class_names", "retry_after", "with_retries"]

T = TypeVar("T")

DOWN = (502, 503, 504)
THROTTLED = 429

PAUSES = (1.0, 2.0, 4.0)
"""Seconds before each further attempt, where the Hub doesn't say how long to wait."""

LONGEST = 120.0
"""Seconds: whoever is asked to wait longer should decide that, not a load that seems to hang."""


def with_retries(
    call: Callable[[], T],
    *,
    statuses: Sequence[int] = DOWN,
    errors: Sequence[str] = (),
    pauses: Sequence[float] = PAUSES,
) -> T:
    """Call what asks the Hub, once more after each pause while the Hub can't answer.

    Parameters:
        statuses: HTTP statuses that are worth another attempt.
        errors: names of exception classes that are, too.
    """
    for pause in pauses:
        try:
            return call()
        except Exception as error:
            asked = retry_after(error)
            again = _status(error) in statuses or not class_names(error).isdisjoint(errors)
            if asked > LONGEST or not again:
                raise
            wait = max(pause, asked)
        time.sleep(wait)  # outside of the handler: what follows has nothing to do with this error
    return call()


def retry_after(error: BaseException) -> float:
    """Seconds that the Hub asks to wait (Retry-After); 0 where it doesn't say."""
    response = getattr(error, "response", None)
    said = response.headers.get("retry-after", "").strip() if response is not None else ""
    return float(said) if said.isdecimal() else 0.0


def class_names(error: BaseException) -> set[str]:
    """An exception's class and its bases by name: huggingface_hub 1 raises httpx's, 2 raises httpx2's."""
    return {kind.__name__ for kind in type(error).__mro__}


def _status(error: BaseException) -> int:
    return int(getattr(getattr(error, "response", None), "status_code", 0))
