"""What a request names beside the checkpoint: another tokenizer, a chat template, adapters."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from loadkit.errors import Problem
from loadkit.facts.checkpoint.adapters import has_adapter, read_adapter, same_base
from loadkit.facts.checkpoint.checkpoint import AdapterFacts, Checkpoint, ProcessingFacts
from loadkit.facts.checkpoint.config_files import read_processing
from loadkit.facts.checkpoint.open_source import Access, open_source
from loadkit.facts.checkpoint.source import CheckpointFiles
from loadkit.schema.request import Request

__all__ = ["Beside", "Template", "read_beside"]

_adapter_problem = partial(Problem, "adapter", "loadkit")
_processing_problem = partial(Problem, "processing", "loadkit")


class Template(msgspec.Struct, frozen=True, kw_only=True):
    """A chat template that was asked for.

    Parameters:
        text: the template, in Jinja.
        origin: where it comes from: "" where it was given as text, else a file or a checkpoint.
    """

    text: str
    origin: str = ""


class Beside(msgspec.Struct, frozen=True, kw_only=True):
    """What was read of it.

    Parameters:
        tokenizer: the tokenizer or processor that the option `tokenizer` names; None where nobody named one.
        template: the chat template that the option `chat_template` gives or names.
        code: the checkpoint's own Python files to their SHA-256, where they may run; empty elsewhere.
        adapters: the existing adapters by name: the source itself where it is one ("default"), and those that the
            option `adapter` names.
    """

    tokenizer: ProcessingFacts | None = None
    template: Template | None = None
    code: dict[str, str] = {}
    adapters: dict[str, AdapterFacts] = {}


def read_beside(
    request: Request, checkpoint: Checkpoint, access: Access, *, allow_pickle: bool = False
) -> tuple[Beside, list[Problem]]:
    """Read the small files of everything that the request names beside the checkpoint.

    Its options `tokenizer`, `chat_template`, `trust_remote_code`, `adapter` and `adapter_revision` are read.
    """
    problems: list[Problem] = []
    tokenizer = template = None
    if named := request.value("tokenizer", ""):
        files = _opened("processing", "tokenizer", named, access, problems)
        if files is not None:
            tokenizer, unread = read_processing(files)
            problems += unread
    if given := request.value("chat_template", ""):
        template = _template(given, access, problems)
    code: dict[str, str] = {}
    if checkpoint.auto_map and request.value("trust_remote_code", False):
        files, unread = open_source(checkpoint.location, checkpoint.commit, access)
        if files is not None:
            code, unread = _code(files)
        problems += unread
    own = checkpoint.adapter  # its base was found by what it names
    adapters = {} if own is None else {"default": msgspec.structs.replace(own, base_is_same=True)}
    for name, source in _named_adapters(request, taken=bool(adapters), problems=problems).items():
        files = _opened("adapter", "adapter", source, access, problems)
        if files is None:
            continue
        if not has_adapter(files):
            problems.append(
                _adapter_problem(
                    "not-an-adapter",
                    f"adapter={source!r} was asked for, but {files} has no adapter_config.json",
                    "give the folder or Hub id of an adapter that PEFT saved, or adapter=True for a new one",
                )
            )
            continue
        facts, unread = read_adapter(files, source, allow_pickle=allow_pickle)
        problems += unread
        same = same_base(facts.config.get("base_model_name_or_path"), checkpoint)
        adapters[name] = msgspec.structs.replace(facts, base_is_same=same)
    return Beside(tokenizer=tokenizer, template=template, code=code, adapters=adapters), problems


def _code(files: CheckpointFiles) -> tuple[dict[str, str], list[Problem]]:
    """The hashes of the Python files beside config.json, which may import each other."""
    hashes: dict[str, str] = {}
    problems: list[Problem] = []
    for name in files.sizes:
        if name.endswith(".py") and "/" not in name:
            data = files.read(name)
            if isinstance(data, Problem):
                problems.append(data)
            else:
                hashes[name] = hashlib.sha256(data).hexdigest()
    return hashes, problems


def _opened(
    stage: str, option: str, source: str, access: Access, problems: list[Problem]
) -> CheckpointFiles | None:
    """The files that "folder", "owner/name" or "owner/name@revision" names."""
    is_path = os.path.exists(os.path.expanduser(source))
    name, _, revision = (source, "", "") if is_path else source.partition("@")
    files, found = open_source(name, revision, access)
    problems += [
        msgspec.structs.replace(p, stage=stage, message=f"{option}={source!r} was asked for: {p.message}")
        for p in found
    ]
    return files


def _template(given: str, access: Access, problems: list[Problem]) -> Template | None:
    """The template as text, from a file, or from another checkpoint."""
    if "{" in given or "\n" in given:
        return Template(text=given)
    path = Path(given).expanduser()
    if path.is_file():
        return _template_file(path, problems)
    files = _opened("processing", "chat_template", given, access, problems)
    if files is None:
        return None
    processing, unread = read_processing(files)
    problems += unread
    if processing.chat_template is None:
        problems.append(
            _processing_problem(
                "no-template-there",
                f"chat_template={given!r} was asked for, and {files} has no chat template",
                "name a checkpoint that has one, a file, or give the template's text",
            )
        )
        return None
    at = f"@{files.commit[:12]}" if files.commit else ""
    return Template(text=processing.chat_template, origin=f"{files.location}{at}")


def _template_file(path: Path, problems: list[Problem]) -> Template | None:
    fault = "it holds no template"
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            content = msgspec.json.decode(text)
            found = content.get("chat_template") if isinstance(content, dict) else None
            text = found if isinstance(found, str) else ""
        if text.strip():
            return Template(text=text, origin=str(path))
    except (OSError, UnicodeDecodeError, msgspec.DecodeError) as error:
        fault = str(error)
    problems.append(
        _processing_problem(
            "bad-template-file",
            f"chat_template={str(path)!r} was asked for, and can't be read: {fault}",
            "give a text file with the Jinja template, or a JSON file with a chat_template in it",
        )
    )
    return None


def _named_adapters(request: Request, *, taken: bool, problems: list[Problem]) -> dict[str, str]:
    """Name to source of the existing adapters that the option `adapter` names."""
    given: Any = request.value("adapter")
    if isinstance(given, bool) or given is None:
        return {}
    named: Mapping[str, Any] = {"default": given} if isinstance(given, str) else given
    wrong = [name for name, source in named.items() if not isinstance(source, str) or not source]
    if wrong:
        problems.append(
            _adapter_problem(
                "bad-adapter",
                f"adapter={given!r} was asked for, and {', '.join(wrong)} isn't a folder or Hub id",
                'name each adapter and its source: {"style": "folder", "facts": "owner/name@revision"}',
            )
        )
        return {}
    if taken and "default" in named:
        problems.append(
            _adapter_problem(
                "adapter-name-taken",
                f"the source {request.source!r} is itself an adapter, and adapter={given!r} was asked for beside it; both would be called 'default'",
                f'give the other one a name: adapter={{"other": {named["default"]!r}}}, or name the base as the source',
            )
        )
        return {}
    revision = request.value("adapter_revision", "")
    if isinstance(given, str) and revision and not taken:
        return {"default": f"{given}@{revision}"}
    return dict(named)
