"""Every rule that loadkit's plugins keep, by its id; checkpoints are loaded, run and saved with it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from loadkit.testing import Scenario, Subject, conformance
from loadkit_torchao import plugin

SCENARIOS = [
    Scenario(name="int8 asked for", options={"torchao_quant_type": "int8_weight_only"}),
    Scenario(name="int4 asked for", options={"torchao_quant_type": "int4_weight_only"}, machine="A100"),
    Scenario(
        name="beside a profile of 4 bits", profile="qlora", options={"torchao_quant_type": "int8_weight_only"}
    ),
]
LOADED = [Scenario(name="run in int8", checkpoint="mistral", profile="inference-int8-torchao")]
torchao = pytest.importorskip("torchao", reason="torchao isn't installed")


@pytest.mark.filterwarnings("ignore")
@conformance(Subject("torchao", plugin), level="1.0", scenarios=[*SCENARIOS, *LOADED])
def test_conformance(check: Callable[[], None]) -> None:
    check()
