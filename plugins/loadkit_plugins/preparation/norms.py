"""Which modules are normalisation layers."""

from __future__ import annotations

from typing import Any

__all__ = ["norms"]


def norms(model: Any) -> dict[str, Any]:
    """Every normalisation layer with a weight, by its path: those whose class is called a norm."""
    return {
        name: module
        for name, module in model.named_modules()
        if type(module).__name__.endswith("Norm") and list(module.parameters(recurse=False))
    }
