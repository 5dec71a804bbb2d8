"""What the audits of all ranks found, as one list."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from loadkit.errors import SEVERITIES, Finding
from loadkit.ranks.rank_names import named

__all__ = ["merged"]


def merged(findings: Sequence[Sequence[Finding]]) -> tuple[Finding, ...]:
    """What all ranks found once; what some found, with their numbers."""
    found_by: dict[Finding, list[int]] = {}
    for rank, found in enumerate(findings):
        for finding in dict.fromkeys(found):
            found_by.setdefault(finding, []).append(rank)
    everybodys = [
        finding if len(ranks) == len(findings) else _of(finding, ranks) for finding, ranks in found_by.items()
    ]
    return tuple(sorted(everybodys, key=lambda finding: SEVERITIES.index(finding.severity)))


def _of(finding: Finding, ranks: Sequence[int]) -> Finding:
    return msgspec.structs.replace(finding, message=f"{named(ranks)}: {finding.message}")
