"""Combinations of versions and machines that are known to go wrong, as data."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import msgspec

from loadkit.facts.machine.machine import Machine

__all__ = ["KNOWN_ISSUES", "Here", "KnownIssue", "known_issues"]


class KnownIssue(msgspec.Struct, frozen=True, kw_only=True):
    """Something that is known to go wrong, with what to do, and the source of that knowledge."""

    code: str
    reason: str
    remedy: str
    source: str


class Here(NamedTuple):
    """What is looked at: the machine with its packages, the environment, and Python's version."""

    machine: Machine
    environ: Mapping[str, str]
    python: tuple[int, int] = sys.version_info[:2]

    def has(self, name: str, *, since: str = "0", before: str = "") -> bool:
        """Whether a distribution is installed, in a version from `since` on and below `before`."""
        version = self.machine.version(name)
        if version is None or version < _numbers(since):
            return False
        return not before or version < _numbers(before)


KNOWN_ISSUES: Mapping[KnownIssue, Callable[[Here], bool]] = {
    KnownIssue(
        code="torch-for-cpu",
        reason="there are NVIDIA GPUs, and torch is built for the CPU: it can't use them",
        remedy="install the build of torch for your CUDA version, as pytorch.org's start page tells",
        source="the driver's list of GPUs beside torch's version, which ends in +cpu",
    ): lambda here: any("built for the CPU only" in note for note in here.machine.notes),
    KnownIssue(
        code="python-below-transformers",
        reason="this transformers needs Python 3.11, and this is an older one: its modules fail when they are imported",
        remedy="install transformers 5.20, the last one for Python 3.10, or take a newer Python",
        source="Requires-Python of transformers from 5.21 on",
    ): lambda here: here.python < (3, 11) and here.has("transformers", since="5.21"),
    KnownIssue(
        code="transformers-4",
        reason="transformers of version 4 is installed: loadkit reads the layout of version 5",
        remedy="pip install 'transformers>=5.5.3'",
        source="transformers 5.0 moved and renamed what planning reads",
    ): lambda here: here.has("transformers", before="5"),
    KnownIssue(
        code="torchao-too-old-for-peft",
        reason="torchao is older than 0.16: PEFT then refuses to attach any adapter, whether torchao is used or not",
        remedy="pip install 'torchao>=0.18', or uninstall it",
        source="is_torchao_available of peft 0.19 to 0.21",
    ): lambda here: here.has("peft", since="0.19") and here.has("torchao", before="0.16"),
    KnownIssue(
        code="torch-too-old-for-torchao",
        reason="torch is older than 2.11: torchao then goes without its compiled kernels, with a line in the log",
        remedy="pip install 'torch>=2.13'",
        source="torchao 0.18, torchao/__init__.py",
    ): lambda here: here.has("torchao", since="0.18") and here.has("torch", before="2.11"),
    KnownIssue(
        code="kernels-on-cpu",
        reason="the package kernels is installed: bitsandbytes then asks the Hub for a kernel of its own on CPUs, and runs it",
        remedy="uninstall kernels, or set HF_HUB_OFFLINE=1",
        source="bitsandbytes 0.50, backends/cpu/ops.py",
    ): lambda here: (
        here.machine.kind == "cpu"
        and here.has("kernels")
        and here.has("bitsandbytes", since="0.50")
        and here.environ.get("HF_HUB_OFFLINE", "").upper() not in ("1", "ON", "YES", "TRUE")
    ),
}
"""What is known to go wrong, to when it does."""


def known_issues(here: Here) -> Iterator[KnownIssue]:
    """Those that apply."""
    yield from (issue for issue, applies in KNOWN_ISSUES.items() if applies(here))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
