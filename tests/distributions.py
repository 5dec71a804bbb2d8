"""Distributions as an installer leaves them: modules, and a folder of metadata with entry points."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

__all__ = ["distribution"]


def distribution(
    folder: Path,
    name: str,
    files: Mapping[str, str],
    entries: Mapping[str, str],
    *,
    version: str = "1.0",
    requires: str = "loadkit",
    group: str = "loadkit",
) -> Path:
    """Write one into a folder, which is then to be put on the path; give the folder back."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Dist: {requires}\n"
    )
    lines = "\n".join(f"{entry} = {value}" for entry, value in entries.items())
    (info / "entry_points.txt").write_text(f"[{group}]\n{lines}\n")
    for file, text in files.items():
        (folder / file).write_text(text)
    return folder
