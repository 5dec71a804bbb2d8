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
from loadkit.facts.checkpoint.open_source import open_source
from loadkit.facts.checkpoint.references import split_revision
from loadkit.facts.checkpoint.source import Access, CheckpointFiles
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
        adapters: the existing adapters by name: the source itself where it is one ("default"), and those that
            the option `adapter` names.
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
    reader = _Reader(request, access)
    beside = Beside(
        tokenizer=reader.tokenizer(),
        template=reader.template(),
        code=reader.code(checkpoint),
        adapters=reader.adapters(checkpoint, allow_pickle=allow_pickle),
    )
    return beside, reader.problems


class _Reader:
    """One reading of what a request names, and the problems it found."""

    def __init__(self, request: Request, access: Access) -> None:
        self.request = request
        self.access = access
        self.problems: list[Problem] = []

    def tokenizer(self) -> ProcessingFacts | None:
        """The tokenizer or processor asked for."""
        named = self.request.value("tokenizer", "")
        files = self.opened("processing", "tokenizer", named) if named else None
        return self.processing(files) if files else None

    def template(self) -> Template | None:
        """The template asked for, as text, from a file, or from another checkpoint."""
        given = self.request.value("chat_template", "")
        if not given:
            return None
        if "{" in given or "\n" in given:
            return Template(text=given)
        path = Path(given).expanduser()
        if _is_file(path):
            return self.template_file(path)
        files = self.opened("processing", "chat_template", given)
        if files is None:
            return None
        text = self.processing(files).chat_template
        if text is None:
            message = f"chat_template={given!r} was asked for, and {files} has no chat template"
            remedy = "name a checkpoint that has one, a file, or give the template's text"
            self.problems.append(_processing_problem("no-template-there", message, remedy))
            return None
        at = f"@{files.commit[:12]}" if files.commit else ""
        return Template(text=text, origin=f"{files.location}{at}")

    def template_file(self, path: Path) -> Template | None:
        """The template in a text file, or in a JSON file such as chat_template.json."""
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
        message = f"chat_template={str(path)!r} was asked for, and can't be read: {fault}"
        remedy = "give a text file with the Jinja template, or a JSON file with a chat_template in it"
        self.problems.append(_processing_problem("bad-template-file", message, remedy))
        return None

    def code(self, checkpoint: Checkpoint) -> dict[str, str]:
        """The hashes of the Python files beside config.json, which import each other, where they may run."""
        if not checkpoint.auto_map or not self.request.value("trust_remote_code", False):
            return {}
        files, problems = open_source(checkpoint.location, checkpoint.commit, self.access)
        self.problems += problems
        if files is None:
            return {}
        names = [name for name in files.sizes if name.endswith(".py") and "/" not in name]
        found = {name: files.read(name) for name in names}
        self.problems += [data for data in found.values() if isinstance(data, Problem)]
        return {n: hashlib.sha256(data).hexdigest() for n, data in found.items() if isinstance(data, bytes)}

    def adapters(self, checkpoint: Checkpoint, *, allow_pickle: bool) -> dict[str, AdapterFacts]:
        """The existing adapters by name, the source's own first."""
        own = checkpoint.adapter  # its base was found by what it names
        adapters = {} if own is None else {"default": msgspec.structs.replace(own, base_is_same=True)}
        for name, source in self.named_adapters(taken=bool(adapters)).items():
            files = self.opened("adapter", "adapter", source)
            if files is None:
                continue
            if not has_adapter(files):
                message = f"adapter={source!r} was asked for, but {files} has no adapter_config.json"
                remedy = (
                    "give the folder or Hub id of an adapter that PEFT saved, or adapter=True for a new one"
                )
                self.problems.append(_adapter_problem("not-an-adapter", message, remedy))
                continue
            facts, problems = read_adapter(files, source, allow_pickle=allow_pickle)
            self.problems += problems
            same = same_base(facts.config.get("base_model_name_or_path"), checkpoint)
            adapters[name] = msgspec.structs.replace(facts, base_is_same=same)
        return adapters

    def named_adapters(self, *, taken: bool) -> dict[str, str]:
        """Name to source of the existing adapters that the option `adapter` names."""
        given: Any = self.request.value("adapter")
        if isinstance(given, bool) or given is None:
            return {}
        named: Mapping[str, Any] = {"default": given} if isinstance(given, str) else given
        wrong = [name for name, source in named.items() if not isinstance(source, str) or not source]
        if wrong:
            message = f"adapter={given!r} was asked for, and {', '.join(wrong)} isn't a folder or Hub id"
            remedy = 'name each adapter and its source: {"style": "folder", "facts": "owner/name@revision"}'
            self.problems.append(_adapter_problem("bad-adapter", message, remedy))
            return {}
        if taken and "default" in named:
            message = f"the source {self.request.source!r} is itself an adapter, and adapter={given!r} was asked for beside it; both would be called 'default'"
            remedy = f'give the other one a name: adapter={{"other": {named["default"]!r}}}, or name the base as the source'
            self.problems.append(_adapter_problem("adapter-name-taken", message, remedy))
            return {}
        revision = self.request.value("adapter_revision", "")
        if isinstance(given, str) and revision and not taken:
            return {"default": f"{given}@{revision}"}
        return dict(named)

    def opened(self, stage: str, option: str, source: str) -> CheckpointFiles | None:
        """The files that "folder", "owner/name" or "owner/name@revision" names."""
        is_path = os.path.exists(os.path.expanduser(source))
        name, revision = (source, "") if is_path else split_revision(source)
        files, problems = open_source(name, revision, self.access)
        asked = f"{option}={source!r} was asked for"
        self.problems += [
            msgspec.structs.replace(p, stage=stage, message=f"{asked}: {p.message}") for p in problems
        ]
        return files

    def processing(self, files: CheckpointFiles) -> ProcessingFacts:
        """What the files have of a tokenizer or processor."""
        found, problems = read_processing(files)
        self.problems += problems
        return found


def _is_file(path: Path) -> bool:
    """Whether a file is there; a text may be too long for a path, or hold what none can."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
