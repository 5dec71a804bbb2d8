"""How manifests read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadkit.schema.notebook import notebook_html
from loadkit.schema.rendering import Row, plain_text, rows_table
from loadkit.schema.report_text import change_text
from loadkit.text.units import size

if TYPE_CHECKING:
    from loadkit.manifest.manifest import Manifest

__all__ = ["manifest_html", "manifest_text"]


def manifest_text(manifest: Manifest) -> str:
    """A manifest as plain text: from what it was loaded, by what, and what was done; the plan is `.plan`."""
    return plain_text(rows_table(_rows(manifest)))


def manifest_html(manifest: Manifest) -> str:
    """A manifest for a notebook; files, libraries and what was done fold away."""
    first, *rest = _rows(manifest)
    return notebook_html("", "", [("", [first]), ("files, libraries, and what was done", rest)])


def _rows(manifest: Manifest) -> list[Row]:
    plan = manifest.plan
    at = f" at {plan.checkpoint.commit[:12]}" if plan.checkpoint.commit else ""
    profile = f", profile {plan.request.profile}" if plan.request.profile else ""
    files = tuple(f"{name}  {size(p.size)}  sha256 {p.sha256[:16]}" for name, p in manifest.files.items())
    versions = [f"{name} {version}" for name, version in manifest.libraries.items()]
    many = size(sum(proof.size for proof in manifest.files.values()))
    listed = {
        "changed": [change_text(change) for change in manifest.changes],
        "finished": list(map(str, manifest.finished)),
        "workarounds": list(manifest.workarounds),
        "findings": [str(finding) for finding in manifest.findings],
    }
    return [
        Row("manifest", f"of {plan.checkpoint.source}{at}{profile}; the plan's digest is {plan.digest[:12]}"),
        Row("files", f"{len(files)}, {many}", files),
        Row("libraries", ", ".join([*versions, f"python {manifest.python}"])),
        *(Row(name, lines[0], tuple(lines[1:])) for name, lines in listed.items() if lines),
    ]
