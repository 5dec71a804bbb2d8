"""What the sweep of a model type finds, against what is expected of it; three modules of tests share the
types, as a worker takes a module at a time."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from zoo.expected import NEEDS, TABLE, expected, known_off, row

__all__ = ["MOST_OFF", "as_expected"]

MOST_OFF = 0.01
"""Share of the measured bytes by which an estimate may be off."""


def as_expected(model_type: str, folder: Path) -> None:
    """Sweep a model type in a folder, and hold what was found against what is expected.

    Raises:
        AssertionError: something is otherwise.
    """
    if model_type in NEEDS and find_spec(NEEDS[model_type]) is None:
        pytest.skip(f"{model_type} needs {NEEDS[model_type]}")
    from zoo.sweeping import sweep

    found = sweep(model_type, folder)
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
