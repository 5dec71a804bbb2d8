"""The zoo's second third."""

from __future__ import annotations

from pathlib import Path

import pytest
from zoo.as_expected import as_expected
from zoo.expected import model_types


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", list(model_types())[1::3])
def test_the_zoo(model_type: str, tmp_path: Path) -> None:
    as_expected(model_type, tmp_path / model_type)
