"""The checks, one module a group."""

from loadkit.testing.checks import contract, facts, failure, loading, manners, packaging  # noqa: F401
from loadkit.testing.kit import CHECKS, Check

__all__ = ["known_checks"]


def known_checks() -> tuple[Check, ...]:
    """Every check, by its code."""
    return tuple(CHECKS[code] for code in sorted(CHECKS))
