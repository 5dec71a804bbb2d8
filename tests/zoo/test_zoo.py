"""Every model type, every profile: what works, and what doesn't for which reason. A third of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from zoo.as_expected import MOST_OFF, as_expected
from zoo.expected import expected, model_types


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", list(model_types())[0::3])
def test_the_zoo(model_type: str, tmp_path: Path) -> None:
    as_expected(model_type, tmp_path / model_type)


def test_nothing_is_expected_of_what_is_not_there() -> None:
    """A model type or profile that nobody sweeps would be a line that can't fail."""
    import msgspec

    here = Path(__file__)
    raw = msgspec.toml.decode(here.with_name("expected.toml").read_bytes())
    off = msgspec.toml.decode(here.with_name("estimates.toml").read_bytes())
    assert set(raw) | {name for types in off.values() for name in types} <= set(model_types())
    assert all(abs(share) > MOST_OFF for types in off.values() for share in types.values())
    for name in raw:
        for profile, found in expected(name).items():
            assert profile in ("made", "full", "lora", "qlora", "qlora-8bit", "inference"), (name, profile)
            assert found.verdict in ("refused", "runs not", "not made")
            assert found.because
