"""The small files of a checkpoint: JSON configs, the chat template, and the beginning of the tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import msgspec

from loadkit.errors import Problem
from loadkit.facts.checkpoint.checkpoint import ProcessingFacts
from loadkit.facts.checkpoint.source import CheckpointFiles, checkpoint_problem

__all__ = ["Configs", "parse_json", "read_configs", "read_each", "read_json", "read_processing"]

S = TypeVar("S")
T = TypeVar("T")

_JSON_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "processor_config.json",
    "preprocessor_config.json",
    "chat_template.json",
)
_TOO_DEEP = "at line 1, column 1: its values are nested too deeply"
_TEMPLATE_FILE = "chat_template.jinja"
_TOKENIZER_FILE = "tokenizer.json"
_DEEPEST = 64
"""Values within values that a file may have: libraries that read it too go down by recursion."""

_LARGEST = 100_000_000
"""Bytes of a file that is read whole; the index of a model of a trillion parameters has some ten millions."""

_TOKENIZER_HEAD = 128 * 1024
"""Bytes of tokenizer.json to read: added tokens stand before the vocabulary of perhaps tens of megabytes."""


class Configs(msgspec.Struct, frozen=True, kw_only=True):
    """What the small files hold, under the names that `Checkpoint` has for it."""

    config: dict[str, Any] = {}
    generation_config: dict[str, Any] = {}
    processing: ProcessingFacts = ProcessingFacts()


def read_configs(files: CheckpointFiles) -> tuple[Configs, list[Problem]]:
    """Read every small file that is there."""
    problems = files.refusals()
    found: dict[str, dict[str, Any]] = {}
    template: str | None = None
    added: dict[str, int] = {}
    names = [n for n in (*_JSON_FILES, _TEMPLATE_FILE, _TOKENIZER_FILE) if files.size(n) is not None]
    for name, data in read_each(files.workers, names, lambda name: _read(files, name)):
        if name == _TOKENIZER_FILE:
            added = {} if isinstance(data, Problem) else _added_tokens(data)
            continue  # what can't be read there is reported by who loads it
        text = data if isinstance(data, Problem) else _decode(name, data)
        parsed = text if isinstance(text, Problem) or name == _TEMPLATE_FILE else parse_json(name, text)
        if isinstance(parsed, Problem):
            problems.append(parsed)
        elif isinstance(parsed, str):
            template = parsed
        else:
            found[name] = parsed
    tokenizer_config = _merged(found, "special_tokens_map.json", "tokenizer_config.json")
    processing = ProcessingFacts(
        location=files.location,
        commit=files.commit,
        files=tuple(files.sizes),
        tokenizer_config=tokenizer_config,
        processor_config=_merged(found, "preprocessor_config.json", "processor_config.json"),
        chat_template=_chat_template(template, found),
        added_tokens={**_decoder_tokens(tokenizer_config), **added},
    )
    configs = Configs(
        config=found.get("config.json", {}),
        generation_config=found.get("generation_config.json", {}),
        processing=processing,
    )
    return configs, problems


def read_processing(files: CheckpointFiles) -> tuple[ProcessingFacts, list[Problem]]:
    """Read what there is of a tokenizer or processor."""
    configs, problems = read_configs(files)
    return configs.processing, problems


def read_json(files: CheckpointFiles, name: str) -> dict[str, Any] | Problem:
    """Read one JSON file whose content must be an object."""
    data = _read(files, name)
    text = data if isinstance(data, Problem) else _decode(name, data)
    return text if isinstance(text, Problem) else parse_json(name, text)


def parse_json(name: str, text: str) -> dict[str, Any] | Problem:
    """Decode JSON text that must be an object.

    Python's own decoder, which transformers reads with, has the last word: it takes NaN and Infinity, which
    configs of state-space models hold and msgspec refuses.
    """
    try:
        found = msgspec.json.decode(text)
    except (msgspec.MsgspecError, RecursionError, UnicodeError):
        try:
            found = json.loads(text)
        except json.JSONDecodeError as error:
            return _bad_json(name, f"at line {error.lineno}, column {error.colno}: {error.msg}")
        except RecursionError:
            return _bad_json(name, _TOO_DEEP)
        except ValueError as error:  # Python limits the digits of an integer
            return _bad_json(name, f"it holds a number that is too long: {error}")
        if "\\u" in text and not _whole_characters(found):
            return _bad_json(name, "it holds half of a character (a surrogate on its own)")
    if _deeper(found, _DEEPEST):
        return _bad_json(name, _TOO_DEEP)
    if not isinstance(found, dict):
        kind = {list: "a list", str: "a string", type(None): "null"}.get(type(found), "a bare value")
        message = f"{name} holds {kind}, where an object ({{…}}) belongs"
        remedy = f"restore {name} from where the checkpoint came from"
        return checkpoint_problem("config-not-object", message, remedy)
    return found


def read_each(workers: int, names: Iterable[S], read: Callable[[S], T]) -> Iterator[tuple[S, T]]:
    """Yield every name with what reading it gives, in order; up to `workers` are read at the same time."""
    every = list(names)
    if workers == 1 or len(every) < 2:
        yield from ((name, read(name)) for name in every)
        return
    with ThreadPoolExecutor(min(workers, len(every)), thread_name_prefix="loadkit-read") as pool:
        yield from zip(every, pool.map(read, every), strict=True)


def _whole_characters(value: object) -> bool:
    """Whether all its texts can be written as UTF-8."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError):
        return False
    return True


def _deeper(value: object, levels: int) -> bool:
    """Whether there are more levels of values within values."""
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_deeper(each, levels - 1) for each in inner)


def _merged(found: Mapping[str, Mapping[str, Any]], *names: str) -> dict[str, Any]:
    return {key: value for name in names for key, value in found.get(name, {}).items()}


def _read(files: CheckpointFiles, name: str) -> bytes | Problem:
    if name == _TOKENIZER_FILE:
        return files.read_range(name, 0, _TOKENIZER_HEAD)
    size = files.size(name)
    if size is not None and size > _LARGEST:
        message = f"{name} has {size:,} bytes, and no such file has more than {_LARGEST:,}"
        return checkpoint_problem("bad-json", message, f"restore {name} from where the checkpoint came from")
    return files.read(name)


def _added_tokens(head: bytes) -> dict[str, int]:
    """Token to id, from the beginning of a tokenizer.json, as far as the list was read."""
    text = head.decode("utf-8", errors="ignore")
    at = text.find("[", text.find('"added_tokens"')) + 1
    found: dict[str, int] = {}
    decoder = json.JSONDecoder()
    while at > 0 and (start := text.find("{", at)) >= 0 and "]" not in text[at:start]:
        try:
            token, at = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            break  # cut off here
        whole = "\\u" not in text or _whole_characters(token)
        if whole and isinstance(token.get("content"), str) and isinstance(token.get("id"), int):
            found[token["content"]] = token["id"]
    return found


def _decoder_tokens(tokenizer_config: Mapping[str, Any]) -> dict[str, int]:
    """The same from `added_tokens_decoder`, where transformers wrote them before version 5."""
    decoder = tokenizer_config.get("added_tokens_decoder")
    if not isinstance(decoder, dict):
        return {}
    return {
        token["content"]: int(number)
        for number, token in decoder.items()
        if number.isdigit() and isinstance(token, dict) and isinstance(token.get("content"), str)
    }


def _chat_template(template: str | None, found: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The template in force: chat_template.json is the one that processors prefer, and only they have it."""
    for given in (
        found.get("chat_template.json", {}).get("chat_template"),
        template,
        found.get("processor_config.json", {}).get("chat_template"),
        found.get("tokenizer_config.json", {}).get("chat_template"),
    ):
        if isinstance(given, str):
            return given
        if isinstance(given, list):  # several templates by name
            for named in given:
                if isinstance(named, dict) and named.get("name") == "default":
                    text = named.get("template")
                    return text if isinstance(text, str) else None
    return None


def _decode(name: str, data: bytes) -> str | Problem:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line, column = before.count(b"\n") + 1, error.start - (before.rfind(b"\n") + 1) + 1
        return _bad_json(name, f"at line {line}, column {column}: this isn't UTF-8")


def _bad_json(name: str, fault: str) -> Problem:
    kind = "JSON" if name.endswith(".json") else "text"
    message = f"{name} isn't valid {kind} {fault}"
    remedy = f"correct {name}, or restore it from where the checkpoint came from"
    return checkpoint_problem("bad-json", message, remedy)
