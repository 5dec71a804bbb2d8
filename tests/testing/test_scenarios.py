"""What a scenario says of a checkpoint can be planned: a plugin's checks would look at nothing else."""

from __future__ import annotations

import pytest

from loadkit.hooks.manager import default_manager
from loadkit.testing import Scenario, plan_of
from loadkit.testing.checkpoints import ARCHITECTURES

KNOWN = sorted({*ARCHITECTURES} - {"remote-code"})  # whose class nobody has without its code


@pytest.mark.parametrize("name", KNOWN)
def test_a_tiny_checkpoint_s_scenario_is_planned(name: str) -> None:
    plan = plan_of(Scenario(name="tiny", checkpoint=name), default_manager())
    assert plan.model_class.model_class == ARCHITECTURES[name].model_class.rpartition(":")[2]
