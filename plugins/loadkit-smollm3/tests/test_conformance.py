"""Every rule that loadkit's plugins keep, by its id; checkpoints are loaded, trained and saved with it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from loadkit.testing import Scenario, Subject, conformance
from loadkit_smollm3 import plugin

OURS = {"smollm3_implementation": "plugin"}
SCENARIOS = [
    Scenario(
        name="asked for",
        config={"model_type": "smollm3", "architectures": ["SmolLM3ForCausalLM"]},
        options=OURS,
    ),
    Scenario(
        name="left to transformers", config={"model_type": "smollm3", "architectures": ["SmolLM3ForCausalLM"]}
    ),
    Scenario(name="run", checkpoint="smollm3", options=OURS),
    Scenario(name="trained whole", checkpoint="smollm3", profile="full", options=OURS),
    Scenario(name="trained over 4 bits", checkpoint="smollm3", profile="qlora", options=OURS),
]


@pytest.mark.filterwarnings("ignore")
@conformance(Subject("smollm3", plugin), level="1.0", scenarios=SCENARIOS)
def test_conformance(check: Callable[[], None]) -> None:
    check()
