"""What the audits of all ranks found, as one list."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from loadkit.errors import SEVERITIES, Finding

__all__ = ["merged"]


def merged(findings: Sequence[Sequence[Finding]]) -> tuple[Finding, ...]:
    """What all ranks found once; what some found, with their numbers.

    Parameters:
        findings: each rank's, by rank.
    """
    homes: dict[Finding, list[int]] = {}
    for rank, found in enumerate(findings):
        for finding in dict.fromkeys(found):
            homes.setdefault(finding, []).append(rank)
    told = [
        finding if len(ranks) == len(findings) else _of(finding, ranks) for finding, ranks in homes.items()
    ]
    return tuple(sorted(told, key=lambda finding: SEVERITIES.index(finding.severity)))


def _of(finding: Finding, ranks: Sequence[int]) -> Finding:
    named = f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
    return msgspec.structs.replace(finding, message=f"{named}: {finding.message}")
