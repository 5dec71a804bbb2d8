"""The checks, one module a group. Importing this makes them known."""

from loadkit.testing.checks import contract, facts, failure, loading, manners, packaging

__all__ = ["contract", "facts", "failure", "loading", "manners", "packaging"]
