"""For authors of plugins: the conformance kit, facts of machines that aren't here, and tiny real checkpoints.

    from loadkit.testing import Scenario, conformance

    @conformance("loadkit_mine", level="1.0", scenarios=[Scenario(name="mine", checkpoint="mistral")])
    def test_conformance(check):
        check()

`loadkit check NAME` runs the same checks without pytest.
"""

from loadkit.testing.checks import known_checks
from loadkit.testing.conformance import ConformanceWarning, conformance
from loadkit.testing.kit import Check, Result
from loadkit.testing.machines import MACHINES, TOPOLOGIES
from loadkit.testing.scenarios import PLAIN, READY, Scenario, plan_of
from loadkit.testing.subjects import Subject, entries, subjects
from loadkit.testing.subprocess_run import run_apart
from loadkit.testing.time_limit import TIME_LIMIT
from loadkit.testing.verdicts import LEVEL, run

__all__ = [
    "LEVEL",
    "MACHINES",
    "PATIENCE",
    "PLAIN",
    "READY",
    "TIME_LIMIT",
    "TOPOLOGIES",
    "Check",
    "ConformanceWarning",
    "Result",
    "Scenario",
    "Subject",
    "conformance",
    "entries",
    "known_checks",
    "plan_of",
    "run",
    "run_apart",
    "subjects",
]

PATIENCE = TIME_LIMIT
"""The older name of `TIME_LIMIT`."""
