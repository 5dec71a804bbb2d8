"""Every model type, every profile: what works, and what doesn't for which reason."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from zoo.expected import NEEDS, TABLE, expected, known_off, model_types, row

MOST_OFF = 0.01
"""Share of the measured bytes by which an estimate may be off."""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", model_types())
def test_the_zoo(model_type: str, tmp_path: Path) -> None:
    if model_type in NEEDS and find_spec(NEEDS[model_type]) is None:
        pytest.skip(f"{model_type} needs {NEEDS[model_type]}")
    from zoo.sweeping import sweep

    found = sweep(model_type, tmp_path / model_type)
    wanted = expected(model_type)
    unexpected = {p: o for p, o in found.items() if o.verdict != "works" and p not in wanted}
    assert unexpected == {}, "add it to expected.toml, with the reason"
    for profile, want in wanted.items():
        assert found[profile].verdict == want.verdict, (profile, want, found[profile])
        assert want.says in found[profile].said, (profile, want)
    off = {profile: outcome.off[0] for profile, outcome in found.items()}
    most = max(off.values(), key=abs)
    known = known_off(model_type)
    assert most == pytest.approx(known, abs=0.001 if known else MOST_OFF), (off, "see estimates.toml")
    verdicts = {profile: outcome.verdict for profile, outcome in found.items()}
    assert row(model_type, verdicts) in TABLE.read_text(encoding="utf-8").splitlines(), (
        "python tests/zoo/table.py"
    )


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
