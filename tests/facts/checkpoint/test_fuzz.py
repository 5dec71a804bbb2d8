"""Files from anybody: whatever is in them, the outcome is a plan or a LoadkitError, soon, and nothing else
happens."""

from __future__ import annotations

import functools
import json
import os
import random
import shutil
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import loadkit
from loadkit.testing.checkpoints import make_adapter

Tiny = Callable[..., Path]
FILES = (
    "config.json",
    "tokenizer_config.json",
    "model.safetensors.index.json",
    "adapter_config.json",
    "generation_config.json",
    "tokenizer.json",
)
STRANGE: tuple[Any, ...] = (
    None, True, -1, 0, 2**63, 2**200, 1e400, float("nan"), "", "../../etc/passwd", "a" * 5000, "\u0000", "💥", [], {}, [[]], {"": {}},
    [None], {"a": [1]}, "evil/kernel", "/etc/passwd", {"quant_method": 5}, ["auto"], "cuda:9", -(2**63), "torch.bfloat16", {"model_type": []},
    "\ud800", {"\udfff": 1}, "(.+)+x", ["(.+)+x"], {"(.+)+x": 3}, "(" * 5000, 10**6, 300_000, {"a": "evil/adapter"}, [[0, 10**9]], "XLORA",
    functools.reduce(lambda inner, _: [inner], range(500), []), functools.reduce(lambda inner, _: {"a_config": inner}, range(60), {}),
)  # fmt: skip
FIELDS = (
    *("", "quantization_config", "auto_map", "text_config", "attn_implementation", "num_hidden_layers"),
    *(
        "rank_pattern",
        "exclude_modules",
        "modules_to_save",
        "layer_replication",
        "adapters",
        "peft_type",
        "r",
    ),
)
"""Fields that are put in where they aren't."""

OTHERS = ("vocab.txt", "additional_chat_templates", "chat_template.jinja", "added_tokens.json", "any.model")
"""Entries of a folder that planning doesn't read, and loading would."""
SLOWEST = 60.0
"""Seconds that no single case may take: a hang, not a speed."""


@contextmanager
def nothing_but_reading(allowed: tuple[str, ...]) -> Iterator[list[str]]:
    """Note every file opened for writing outside of these folders, every connection, and every process
    started."""
    seen: list[str] = []
    watching = True

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if not watching:
            return
        if event == "open" and isinstance(args[0], str):
            writes = isinstance(args[1], str) and set(args[1]) & set("wax+")
            flags = args[2] if isinstance(args[2], int) else 0
            if (writes or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) and not args[0].startswith(allowed):
                seen.append(f"{event} {args[0]}")
        elif event in ("socket.connect", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"):
            seen.append(f"{event} {args[:2]!r}"[:200])

    sys.addaudithook(hook)
    try:
        yield seen
    finally:
        watching = False


def mutated_json(text: bytes, chance: random.Random) -> bytes:
    """The JSON with one value, somewhere, replaced by a strange one; or removed, or its key changed."""
    try:
        content = json.loads(text)
    except ValueError:
        return mutated_bytes(text, chance)
    here: Any = content
    for _ in range(chance.randrange(4)):
        if isinstance(here, dict) and here:
            key: Any = chance.choice(sorted(here))
        elif isinstance(here, list) and here:
            key = chance.randrange(len(here))
        else:
            break
        if not isinstance(here[key], dict | list) or not here[key]:
            break
        here = here[key]
    if isinstance(here, dict) and here:
        key = chance.choice(sorted(here))
        match chance.randrange(4):
            case 0:
                del here[key]
            case 1:
                here[chance.choice([*FIELDS, key * 2])] = chance.choice(STRANGE)
            case _:
                here[key] = chance.choice(STRANGE)
    elif isinstance(here, list) and here:
        here[chance.randrange(len(here))] = chance.choice(STRANGE)
    return json.dumps(content).encode("utf-8", "surrogatepass")


@contextmanager
def mutated_entry(path: Path, chance: random.Random) -> Iterator[str]:
    """Something else than a file in its place, or under a name that was free; as it was afterwards."""
    away = path.parent.parent / "away"
    if path.exists():
        path.rename(away)
    kind = chance.choice(
        ["link out", "link to a device", "link to nowhere", "pipe", "folder", "odd name", "link in"]
    )
    place = path
    match kind:
        case "link out":
            path.symlink_to(away if away.exists() else path.parent.parent)
        case "link to a device":
            path.symlink_to("/dev/zero")
        case "link to nowhere":
            path.symlink_to("/nowhere")
        case "link in":
            path.symlink_to("config.json")
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case _:
            place = path.with_name(f"{path.name}\udcff")
            place.touch()
    try:
        yield kind
    finally:
        place.rmdir() if place.is_dir() and not place.is_symlink() else place.unlink()
        if away.exists():
            away.rename(path)


def mutated_bytes(data: bytes, chance: random.Random) -> bytes:
    """Bytes changed, cut, doubled or put in."""
    data = bytearray(data)
    for _ in range(chance.randrange(1, 4)):
        at = chance.randrange(len(data) + 1)
        match chance.randrange(5):
            case 0:
                data[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                del data[at:]
            case 2:
                data[at:at] = data[max(0, at - 20) : at]
            case 3:
                data[at:at] = bytes(chance.randrange(256) for _ in range(chance.randrange(8)))
            case _:
                del data[at : at + chance.randrange(30)]
    return bytes(data)


def mutated_header(data: bytes, chance: random.Random) -> bytes:
    """A safetensors file with another header: its length, its JSON, its offsets."""
    (length,) = struct.unpack("<Q", data[:8])
    header, rest = data[8 : 8 + length], data[8 + length :]
    kind = chance.randrange(4)
    if kind == 0:
        return (
            struct.pack("<Q", chance.choice([0, 1, length - 1, length + 1, 2**32, 2**63, 2**64 - 1]))
            + header
            + rest
        )
    if kind == 1:
        header = mutated_bytes(header, chance)
    else:
        content = json.loads(header)
        name = chance.choice(sorted(content))
        if isinstance(content[name], dict) and name != "__metadata__":
            field = chance.choice(["dtype", "shape", "data_offsets"])
            choices = {
                "dtype": ["F99", 5, None, "I4", "F64"],
                "shape": [[-1], [2**62, 2**62], [0], "x", [1.5], [[1]], [2**70], None],
                "data_offsets": [[0, 2**62], [5, 1], [-1, 3], [0], "x", [0.5, 1], None],
            }
            content[name][field] = chance.choice(choices[field])
        else:
            content[name] = chance.choice(STRANGE)
        header = json.dumps(content).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(header)) + header + rest


@pytest.fixture(scope="module")
def folders(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A checkpoint in shards, a vision-language one, and an adapter of the first."""
    home = tmp_path_factory.mktemp("fuzz")
    text = Path(shutil.copytree(tiny("mistral", shards=2), home / "text"))
    image = Path(shutil.copytree(tiny("gemma3"), home / "image"))
    return [text, image, make_adapter(home / "adapter", text)]


def outcome_of(folder: Path, profile: str | None, **options: Any) -> str:
    """ "plan" or "refused"; a refusal says what is wrong and how to put it right, and no plugin breaks."""
    try:
        plan = loadkit.plan(folder, profile, **options)
    except loadkit.LoadkitError as error:
        problems = getattr(error, "problems", ())
        broken = [p for p in problems if not (p.message and p.remedy) or p.code == "plugin-failed"]
        if broken:
            raise AssertionError(broken) from error
        return "refused"
    assert loadkit.Plan.from_json(plan.to_json()) == plan
    return "plan"


def timed(folder: Path, case: str, chance: random.Random) -> str:
    """The outcome of a case, which is printed where there is none, or none in time."""
    start = time.monotonic()
    try:
        outcome = outcome_of(
            folder, chance.choice([None, "qlora", "inference"]), trust_remote_code=chance.random() < 0.1
        )
    except BaseException:
        print(case)
        raise
    assert time.monotonic() - start < SLOWEST, case
    return outcome


def fuzz(folders: list[Path], cases: int, seed: int) -> dict[str, int]:
    """Count the outcomes of so many cases; anything but a plan or a LoadkitError is raised."""
    chance = random.Random(seed)
    outcomes: dict[str, int] = {}
    targets = [
        (f, p) for f in folders for p in sorted(f.iterdir()) if p.name in FILES or p.suffix == ".safetensors"
    ]
    for number in range(cases):
        folder, path = chance.choice(targets)
        if chance.random() < 0.05:
            with mutated_entry(chance.choice([path, folder / chance.choice(OTHERS)]), chance) as kind:
                outcome = timed(folder, f"case {number} of seed {seed}: {kind} for {path}", chance)
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
            continue
        original = path.read_bytes()
        if path.suffix == ".safetensors":
            changed = mutated_header(original, chance)
        else:
            changed = (mutated_json if chance.random() < 0.7 else mutated_bytes)(original, chance)
        path.write_bytes(changed)
        try:
            outcome = timed(folder, f"case {number} of seed {seed}: {path}: {changed[:2000]!r}", chance)
        finally:
            path.write_bytes(original)
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    return outcomes


def run(folders: list[Path], cases: int, seed: int) -> None:
    home = str(folders[0].parent)
    loadkit.plan(folders[0])  # the index of transformers is written to the cache first
    with nothing_but_reading((home, os.environ["LOADKIT_CACHE"], "/dev/null")) as seen:
        outcomes = fuzz(folders, cases, seed)
    assert seen == []
    assert set(outcomes) == {"plan", "refused"}
    assert min(outcomes.values()) > cases / 50, outcomes


def test_some_files_from_anybody(folders: list[Path]) -> None:
    run(folders, 400, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 12))
def test_many_files_from_anybody(folders: list[Path], seed: int) -> None:
    run(folders, 5_000, seed)


def test_a_token_is_nowhere(
    tiny: Tiny, tmp_path: Path, hub: Any, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Not in errors, logs, plans or manifests."""
    secret = "hf_" + "S3cret" * 6
    hub.add("owner/open", tiny("mistral"))
    hub.add("owner/gated", tiny("llama"), access="gated")
    hub.add("owner/private", tiny("llama"), access="private")
    hub.tokens.add(secret)
    caplog.set_level(0)
    loaded = loadkit.load("owner/open", token=secret)
    texts = [
        loaded.plan.to_json(),
        str(loaded.plan),
        str(loaded.report),
        loaded.manifest().to_json(),
        repr(loaded),
    ]
    hub.tokens.clear()  # revoked
    for source in ("owner/gated", "owner/private", "owner/nowhere"):
        with pytest.raises(loadkit.LoadkitError) as caught:
            loadkit.load(source, token=secret)
        texts += [str(caught.value), repr(caught.value), repr(caught.value.__cause__)]
    texts += [caplog.text, *capfd.readouterr()]
    assert not any("S3cret" in text for text in texts)
