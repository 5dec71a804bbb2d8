"""What goes along with the weights: the base's configs, with what the merge changes in them, and the plan's
tokenizer or processor."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from loadkit.errors import LoadError
from loadkit.facts.checkpoint.folder_entries import link_outside
from loadkit.merging.outline import OutFile
from loadkit.schema.plans import Plan

__all__ = ["changed_fields", "companions", "edited", "index_of", "write_json"]

OWN = ("config.json", "generation_config.json", "*.py", "LICENSE*", "NOTICE*", "USE_POLICY*")
"""Files that come from the base: its configs, its own code, and what its licence asks to be handed on."""

PROCESSING = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "*.spm", "*.bpe")
"""What tokenizers and processors are made of."""

NOT_PROCESSING = (
    *("config.json", "generation_config.json", "adapter_config.json", "trainer_state.json", "*_results.json"),
    *("*.index.json", "loadkit-manifest.json", "requirements.txt", "LICENSE*", "NOTICE*", "training_args*"),
)
"""What is named alike, and isn't a tokenizer's or processor's."""

FOLDERS = ("", "additional_chat_templates")
"""Where those lie."""


def companions(plan: Plan, base: Path, processing: Path | None) -> dict[str, Path]:
    """Every file that goes along, by its name in the merged checkpoint.

    Parameters:
        plan: what was planned.
        base: the folder of the base's files.
        processing: the folder of the tokenizer's or processor's; None for none.

    Raises:
        LoadError: one is a link out of its folder.
    """
    found = {name: base / name for name in _names(base, ("",)) if _matches(name, OWN)}
    if processing is not None:
        found |= {
            name: processing / name
            for name in _names(processing, FOLDERS)
            if _matches(name, PROCESSING) and not _matches(name, NOT_PROCESSING)
        }
    for path in found.values():
        root = processing if processing is not None and processing in path.parents else base
        if problem := link_outside(str(root), path.relative_to(root).as_posix()):
            raise LoadError(f"{problem.message}\n    fix: {problem.remedy}")
    return found


def _names(folder: Path, inside: tuple[str, ...]) -> Iterator[str]:
    for part in inside:
        if (folder / part).is_dir():
            yield from sorted(
                f"{part}/{p.name}".lstrip("/") for p in (folder / part).iterdir() if p.is_file()
            )


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(Path(name).name, pattern) for pattern in patterns)


def changed_fields(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config that aren't what they were, nested ones within their own mappings."""
    changed: dict[str, Any] = {}
    for key, value in after.items():
        old = before.get(key)
        if isinstance(value, dict) and isinstance(old, dict):
            if inner := changed_fields(old, value):
                changed[key] = inner
        elif key not in before or old != value:
            changed[key] = value
    return changed


def edited(content: str, changes: Mapping[str, Any]) -> str:
    """A config with some fields changed, and everything else as it was."""
    if not changes:
        return content
    config = json.loads(content)
    _overlay(config, changes)
    return _text(config)


def _overlay(config: dict[str, Any], changes: Mapping[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(config.get(key), dict):
            _overlay(config[key], value)
        else:
            config[key] = value


def index_of(files: list[OutFile], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The index of several weight files."""
    total = sum(tensor.nbytes for file in files for tensor in file.tensors)
    homes = {tensor.name: file.name for file in files for tensor in file.tensors}
    return {"metadata": {**metadata, "total_size": total}, "weight_map": dict(sorted(homes.items()))}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a mapping as indented JSON."""
    path.write_text(_text(content), encoding="utf-8")


def _text(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def copy(path: Path, target: Path) -> None:
    """Copy a file's bytes, and nothing else of it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target)
