"""What the sweep is to find: everything works but for what expected.toml and estimates.toml list, each with
its reason."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from loadkit.facts.library.index import read_library

__all__ = ["NEEDS", "PROFILES", "TABLE", "Expected", "expected", "known_off", "model_types", "row", "works"]

TABLE = Path(__file__).parents[2] / "docs" / "reference" / "architectures.md"
"""The page that `python tests/zoo/table.py` writes."""

NEEDS: Mapping[str, str] = {
    "fast_vlm": "timm",
    "gemma3n": "timm",
    "perception_lm": "timm",
    "inkling_mm_model": "scipy",
}
"""Model types to a package that they need and loadkit doesn't."""

PROFILES = ("full", "lora", "qlora", "qlora-8bit", "inference")
"""What is swept."""

SHOWN: Mapping[str, str] = {
    "works": "✓",
    "refused": "refused",
    "runs not": "fails",
    "not made": "—",
}


class Expected(msgspec.Struct, frozen=True, array_like=True):
    """What is to become of a profile: the verdict, a part of what is said, and why that is so."""

    verdict: str
    says: str
    because: str


def model_types() -> dict[str, str]:
    """Every model type of the two maps to the task that loadkit gives it; transformers isn't imported."""
    maps = read_library(None).auto_classes
    causal = dict.fromkeys(maps["AutoModelForCausalLM"], "causal-lm")
    vision = dict.fromkeys(maps["AutoModelForImageTextToText"], "image-text-to-text")
    return dict(sorted((causal | vision).items()))


def expected(model_type: str) -> dict[str, Expected]:
    """The profiles of a model type that don't work, as expected.toml has them ("full lora" stands for
    both)."""
    raw = msgspec.toml.decode(
        Path(__file__).with_name("expected.toml").read_bytes(), type=dict[str, dict[str, Expected]]
    )
    return {profile: found for names, found in raw.get(model_type, {}).items() for profile in names.split()}


def known_off(model_type: str) -> float:
    """By what share of the measured bytes the estimate of a base is known to be off; 0 where it isn't."""
    raw = msgspec.toml.decode(
        Path(__file__).with_name("estimates.toml").read_bytes(), type=dict[str, dict[str, float]]
    )
    return next((types[model_type] for types in raw.values() if model_type in types), 0.0)


def works(verdicts: Mapping[str, str]) -> bool:
    """Whether every profile does."""
    return all(verdicts.get(profile) == "works" for profile in PROFILES)


def row(model_type: str, verdicts: Mapping[str, str]) -> str:
    """A model type's line of the page: its name where every profile works, else its row in the table.

    Parameters:
        verdicts: profile to verdict, or "made" alone where transformers can't make the model.
    """
    if works(verdicts):
        return f"`{model_type}`"
    cells = [SHOWN[verdicts.get(profile, verdicts.get("made", ""))] for profile in PROFILES]
    return f"| {model_type} | {' | '.join(cells)} |"
