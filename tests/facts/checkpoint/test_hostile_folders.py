"""Folders from anybody: links out of them, pipes, names and texts that aren't UTF-8; one clear error each."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import loadkit

Tiny = Callable[..., Path]
Change = Callable[[Path], object]


@pytest.fixture
def folder(tiny: Tiny, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny("mistral"), tmp_path / "own"))


def codes(folder: os.PathLike[str] | str, **options: Any) -> list[str]:
    """The codes of the errors, each with a message and a remedy; none for a plan."""
    problems: tuple[loadkit.Problem, ...] = ()
    try:
        assert loadkit.plan(folder, **options).to_json()
    except loadkit.PlanError as error:
        problems = tuple(error.problems)
        str(error).encode()  # it can be printed
    assert all(problem.message and problem.remedy for problem in problems)
    return [problem.code for problem in problems if problem.severity == "error"]


def edited(name: str, **more: Any) -> Change:
    def change(folder: Path) -> None:
        (folder / name).write_text(json.dumps({**json.loads((folder / name).read_text()), **more}))

    return change


def linked(name: str, to: str = "") -> Change:
    """A link of that name, to the file itself moved out of the folder, or elsewhere."""

    def change(folder: Path) -> None:
        path, away = folder / name, folder.parent / "away"
        if path.exists():
            path.rename(away)
        elif not to:
            away.write_text("secret")
        path.parent.mkdir(exist_ok=True)
        path.symlink_to(to or away)

    return change


def in_its_place(name: str, make: Callable[[Path], object]) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return change


def listening(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the whole path may be too long for a socket
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)
    finally:
        os.chdir(here)


def nested(levels: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _ in range(levels):
        found = {"a_config": found}
    return found


def deep_text(folder: Path) -> None:
    whole = (folder / "config.json").read_text().rstrip()[:-1]
    (folder / "config.json").write_text(f'{whole}, "x": {"[" * 100_000}{"]" * 100_000}}}')


LINKS = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "model.safetensors",
    "vocab.txt",
    "any.model",
)
REFUSED: dict[str, tuple[Change, str]] = {
    **{f"link {name}": (linked(name), "link-outside") for name in LINKS},
    "link of a template": (linked("additional_chat_templates/x.jinja"), "link-outside"),
    "link of the templates": (linked("additional_chat_templates", "/etc"), "link-outside"),
    "link of a second tokenizer": (linked("char_tokenizer", "/etc"), "link-outside"),
    "link to a device": (linked("added_tokens.json", "/dev/zero"), "link-outside"),
    "link to nowhere": (linked("vocab.json", "/nowhere/at/all"), "link-outside"),
    "pipe generation_config.json": (in_its_place("generation_config.json", os.mkfifo), "not-a-file"),
    "pipe config.json": (in_its_place("config.json", os.mkfifo), "not-a-file"),
    "pipe tokenizer.json": (in_its_place("tokenizer.json", os.mkfifo), "not-a-file"),
    "pipe of any name": (in_its_place("merges.bpe", os.mkfifo), "not-a-file"),
    "pipe model.safetensors": (in_its_place("model.safetensors", os.mkfifo), "not-a-file"),
    "socket": (in_its_place("vocab.json", listening), "not-a-file"),
    "folder tokenizer.json": (in_its_place("tokenizer.json", os.mkdir), "not-a-file"),
    "half a character": (edited("config.json", note="\ud800"), "bad-json"),
    "half a character in a key": (edited("tokenizer_config.json", **{"\udfff": 1}), "bad-json"),
    "nested": (edited("config.json", x=nested(100)), "bad-json"),
    "nested beyond the decoder": (deep_text, "bad-json"),
    "a file of a terabyte": (lambda folder: os.truncate(folder / "config.json", 10**12), "bad-json"),
    "a million layers": (edited("config.json", num_hidden_layers=10**6), "config-differs"),
    "a billion columns": (edited("config.json", hidden_size=10**9), "config-differs"),
    "a million heads": (edited("config.json", num_attention_heads=10**6), "config-differs"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_by_name(name: str, folder: Path) -> None:
    change, code = REFUSED[name]
    change(folder)
    assert code in codes(folder)


def test_harmless_entries_stay_harmless(folder: Path) -> None:
    (folder / "copy.json").symlink_to("config.json")
    (folder / "tokenizer.json").rename(folder / "kept.json")
    (folder / "tokenizer.json").symlink_to(folder / "kept.json")
    (folder / "README.md").symlink_to("/etc/hostname")
    (folder / "runs").symlink_to("/tmp")
    os.mkfifo(folder / ".lock")
    (folder / "circle.json").symlink_to("circle.json")
    with open(os.fsencode(folder) + b"/\xff.json", "wb"):
        pass
    assert codes(folder) == []


def test_a_snapshot_of_the_hub_is_made_of_links(folder: Path, tmp_path: Path) -> None:
    """They lead to the blobs of their own repository, and to no other's."""
    cache = tmp_path / "models--owner--name"
    snapshot, blobs = cache / "snapshots" / ("a" * 40), cache / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(blobs / str(number))
        (snapshot / path.name).symlink_to(blobs / str(number))
    assert codes(snapshot) == []
    other = tmp_path / "models--other--name" / "blobs"
    other.mkdir(parents=True)
    (other / "secret").write_text("{}")
    (snapshot / "vocab.json").symlink_to(other / "secret")
    assert codes(snapshot) == ["link-outside"]


@pytest.mark.parametrize("option", ["tokenizer", "chat_template", "adapter"])
def test_what_lies_elsewhere_is_looked_at_too(option: str, tiny: Tiny, folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "x"}')
    linked("vocab.json")(folder)
    assert "link-outside" in codes(tiny("mistral"), **{option: str(folder)})


def test_names_that_are_not_utf8(folder: Path, tiny: Tiny) -> None:
    odd = Path(os.fsdecode(os.fsencode(folder) + b"\xff"))
    folder.rename(odd)
    assert codes(odd) == ["not-utf8-name"]
    for option in ("tokenizer", "adapter", "cache_dir"):
        assert codes(tiny("mistral"), **{option: str(odd)}) == ["not-utf8-name"]
    (odd / "additional_chat_templates").mkdir()
    with open(os.fsencode(odd) + b"/additional_chat_templates/\xff.jinja", "wb"):
        pass
    odd.rename(folder)
    assert codes(folder) == ["not-utf8-name"]


def test_a_working_folder_that_is_gone(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    for source in (tiny("mistral"), "own", "owner/name"):
        with pytest.raises(loadkit.LoadkitError, match="the folder that this process works in is gone"):
            loadkit.load(source)


def test_a_pipe_has_no_fingerprint(tmp_path: Path) -> None:
    """It would be waited at for ever."""
    from loadkit.facts.checkpoint.fingerprint import fingerprint, sample

    (tmp_path / "config.json").write_text("{}")
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(OSError, match="it is no file"):
        sample(tmp_path / "model.safetensors")
    assert fingerprint(str(tmp_path), "", ["model.safetensors"]) == ""
    assert fingerprint(str(tmp_path), "", ["config.json"])
