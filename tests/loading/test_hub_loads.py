"""Loads from a Hub on this machine, over real HTTP: what is sent, what happens when it goes wrong, and what
is never loaded."""

from __future__ import annotations

import json
import os
import shutil
import struct
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from forks import Forks
from hub_server import Fault, HubServer
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import RemoteEntryNotFoundError
from safetensors.torch import load_file, save_file

import loadkit
from loadkit.facts.hub import download as hub_files
from loadkit.facts.load_facts import read_load_facts
from loadkit.loading.download import explain, fetch_adapters
from loadkit.testing.checkpoints import make_adapter

Tiny = Callable[..., Path]

NAME = "owner/name"
WEIGHTS = "model.safetensors"
PIECE = 16_384
TOKEN = "hf_" + "secret" * 2


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that somebody wanted to wait; nobody does."""
    asked: list[float] = []
    monkeypatch.setattr(time, "sleep", asked.append)
    return asked


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface_hub writes 10 MB at a time, and what isn't written is asked for again: the tiny files are
    smaller."""
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", PIECE)


def other(folder: Path, target: Path) -> Path:
    """The same model with other weights, in another place."""
    shutil.copytree(folder, target)
    weights = load_file(target / WEIGHTS)
    save_file({name: tensor + 1 for name, tensor in weights.items()}, target / WEIGHTS, {"format": "pt"})
    return target


def sharded(folder: Path, target: Path, shards: int = 3) -> Path:
    """The same model with its weights in several files."""
    shutil.copytree(folder, target)
    tensors = load_file(target / WEIGHTS)
    (target / WEIGHTS).unlink()
    names = [f"model-{n + 1:05}-of-{shards:05}.safetensors" for n in range(shards)]
    parts = {name: list(tensors)[at::shards] for at, name in enumerate(names)}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, target / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, part in parts.items() for name in part}}
    (target / "model.safetensors.index.json").write_text(json.dumps(index))
    return target


def weights(source: Any, **options: Any) -> dict[str, torch.Tensor]:
    return loadkit.load(source, **options).model.state_dict()


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def refused(source: Any, token: str = TOKEN, **options: Any) -> str:
    """The text of the one error that a load or plan ends in; nothing that is printed of it holds a token."""
    with pytest.raises(loadkit.LoadkitError) as caught:
        loadkit.load(source, token=token, **options)
    assert TOKEN not in printed(caught.value)
    assert "fix: " in str(caught.value)
    return str(caught.value)


def printed(error: Exception) -> str:
    """All that Python prints of an error."""
    return "".join(traceback.format_exception(error)) + repr(error)


def adapter_of(base: str, tiny: Tiny, target: Path) -> Path:
    """An adapter for a repository of tiny("mistral")."""
    folder = make_adapter(target, tiny("mistral"))
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": base}))
    return folder


def blobs(cache: Path) -> set[str]:
    """What lies in the cache under a file's name, whole as far as huggingface_hub knows."""
    return {path.name for path in cache.glob("models--*/snapshots/*/*")}


# What planning costs


def mistral_7b(tiny: Tiny, folder: Path) -> int:
    """A repository of Mistral-7B's shapes in three files of nothing; the bytes of its tensors."""
    shutil.copytree(tiny("mistral"), folder)
    (folder / WEIGHTS).unlink()
    config = json.loads((folder / "config.json").read_text())
    wide, inner, vocabulary, layers = 4096, 14336, 32000, 32
    config |= {"hidden_size": wide, "intermediate_size": inner, "vocab_size": vocabulary, "head_dim": 128}
    config |= {"num_hidden_layers": layers, "num_attention_heads": 32, "num_key_value_heads": 8}
    (folder / "config.json").write_text(json.dumps(config))
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, wide)}
    for n in range(layers):
        of = f"model.layers.{n}."
        shapes |= {of + f"self_attn.{p}_proj.weight": (wide, wide) for p in "qo"}
        shapes |= {of + f"self_attn.{p}_proj.weight": (1024, wide) for p in "kv"}
        shapes |= {of + f"mlp.{p}_proj.weight": (inner, wide) for p in ("gate", "up")}
        shapes |= {of + "mlp.down_proj.weight": (wide, inner)}
        shapes |= {of + "input_layernorm.weight": (wide,), of + "post_attention_layernorm.weight": (wide,)}
    shapes |= {"model.norm.weight": (wide,), "lm_head.weight": (vocabulary, wide)}
    names, whole, weight_map = list(shapes), 0, {}
    for n in range(3):
        header: dict[str, Any] = {}
        at = 0
        for name in names[n::3]:
            size = 2 * torch.Size(shapes[name]).numel()
            header[name] = {"dtype": "BF16", "shape": shapes[name], "data_offsets": [at, at + size]}
            at += size
        file = f"model-{n + 1:05}-of-00003.safetensors"
        text = json.dumps(header).encode()
        (folder / file).write_bytes(struct.pack("<Q", len(text)) + text)
        os.truncate(folder / file, 8 + len(text) + at)
        weight_map |= dict.fromkeys(header, file)
        whole += at
    index = {"metadata": {"total_size": whole}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return whole


def test_planning_seven_billion_parameters_costs_headers_only(
    hub: HubServer, tiny: Tiny, tmp_path: Path
) -> None:
    whole = mistral_7b(tiny, tmp_path / "m")
    assert whole == 2 * 7_241_732_096
    hub.add(NAME, tmp_path / "m")
    plan = loadkit.plan(NAME, "qlora")
    assert plan.checkpoint.weight_bytes == whole
    assert plan.checkpoint.tensors == 291
    assert 0 < sum(answer.sent for answer in hub.answers) < 1_000_000


# One commit


def commits_of(hub: HubServer) -> set[str]:
    """The commits that files were asked for at."""
    return {
        answer.path.split("/resolve/")[1].split("/")[0]
        for answer in hub.answers
        if "/resolve/" in answer.path
    }


def test_a_branch_that_moves_before_the_load_changes_nothing(
    hub: HubServer, tiny: Tiny, tmp_path: Path
) -> None:
    folder = tiny("mistral")
    commit = hub.add(NAME, folder)
    plan = loadkit.plan(NAME)
    hub.add(NAME, other(folder, tmp_path / "other"))
    assert same(weights(plan), weights(folder))
    assert commits_of(hub) == {commit}
    assert not same(weights(NAME), weights(folder))  # a new plan sees the new commit


@pytest.mark.parametrize(
    "moment", ["/api/models/owner/name", "/config.json", "/tokenizer.json", "/model.safetensors"]
)
def test_a_branch_that_moves_between_two_requests_changes_nothing(
    hub: HubServer, tiny: Tiny, tmp_path: Path, moment: str
) -> None:
    folder = tiny("mistral")
    commit = hub.add(NAME, folder)
    moved: list[str] = []
    hub.after(moment, lambda: moved.append(hub.add(NAME, other(folder, tmp_path / "other"))))
    loaded = loadkit.load(NAME)
    assert moved
    assert moved != [commit]
    assert loaded.plan.checkpoint.commit == commit
    assert same(loaded.model.state_dict(), weights(folder))
    assert commits_of(hub) == {commit}


def test_code_is_of_the_same_commit(hub: HubServer, tiny: Tiny, tmp_path: Path) -> None:
    folder = tiny("remote-code")
    commit = hub.add(NAME, folder)
    asked = {"trust_remote_code": True, "revision": commit}  # code that could change is refused
    hub.after("/api/models/owner/name", lambda: hub.add(NAME, other(folder, tmp_path / "other")))
    assert same(weights(NAME, **asked), weights(folder, trust_remote_code=True))
    assert commits_of(hub) == {commit}
    assert any(answer.path.endswith(".py") for answer in hub.answers)


# A Hub that throttles


FAULTS = [
    pytest.param(planned, method, path, id=f"{'loading' if planned else 'all'} {method} {path}")
    for planned, path in (
        (False, "/api/models/owner/name"),
        (False, "/config.json"),
        (False, "/tokenizer.json"),
        (False, f"/{WEIGHTS}"),
        (True, "/api/models/owner/name"),
        (True, "/tokenizer.json"),
        (True, f"/{WEIGHTS}"),
    )
    for method in (("GET",) if "api" in path else ("HEAD", "GET"))
]
"""Whether it goes wrong in the load of a plan or in all that a load does, and what goes wrong."""


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(("planned", "method", "path"), FAULTS)
def test_a_throttled_load_waits_as_long_as_it_is_asked_to(
    hub: HubServer, tiny: Tiny, waits: list[float], status: int, method: str, path: str, planned: bool
) -> None:
    hub.add(NAME, tiny("mistral"))
    source = loadkit.plan(NAME) if planned else NAME
    hub.faults.append(Fault(path, (method,), times=2, status=status, retry_after=17))
    hub.answers.clear()
    assert same(weights(source), weights(tiny("mistral")))
    assert len([answer for answer in hub.answers if answer.status == status]) == 2
    # After a refused HEAD huggingface_hub looks into its cache first, and asks again at once.
    assert len([wait for wait in waits if wait >= 17]) == (1 if method == "HEAD" else 2)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(("planned", "method", "path"), FAULTS)
def test_a_hub_that_throttles_for_ever_is_told(
    hub: HubServer, tiny: Tiny, waits: list[float], status: int, method: str, path: str, planned: bool
) -> None:
    hub.add(NAME, tiny("mistral"))
    hub.tokens.add(TOKEN)
    source = loadkit.plan(NAME) if planned else NAME
    hub.faults.append(Fault(path, (method,), times=-1, status=status, retry_after=1))
    said = refused(source)
    assert f"127.0.0.1:{hub.port}" in said
    assert f"HTTP {status}" in said
    assert said.count("fix: ") == 1
    assert "try again later" in said
    assert "HF_HUB_OFFLINE=1" in said


def test_after_a_file_that_cannot_be_had_no_other_is_asked_for(
    hub: HubServer, tiny: Tiny, tmp_path: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_files, "_WORKERS", 1)
    hub.add(NAME, sharded(tiny("mistral"), tmp_path / "m"))
    hub.tokens.add(TOKEN)
    plan = loadkit.plan(NAME)
    hub.answers.clear()
    hub.faults.append(Fault(".safetensors", ("GET",), times=-1, status=503))
    refused(plan)
    asked = [answer.path.rpartition("/")[2] for answer in hub.answers if answer.status == 503]
    assert set(asked) == {"model-00001-of-00003.safetensors"}


def test_a_very_long_wait_is_left_to_the_user(hub: HubServer, tiny: Tiny, waits: list[float]) -> None:
    hub.add(NAME, tiny("mistral"))
    hub.tokens.add(TOKEN)
    hub.faults.append(Fault("/api/models/", times=-1, status=503, retry_after=3600))
    assert "asks to wait 3600 s" in refused(NAME)
    assert waits == []


def test_a_small_file_that_is_refused_is_not_taken_for_one_that_is_not_there(
    hub: HubServer, tiny: Tiny, tmp_path: Path, waits: list[float]
) -> None:
    """transformers takes it so: it gives a tokenizer without those tokens, in silence."""
    folder = Path(shutil.copytree(tiny("mistral"), tmp_path / "m"))
    (folder / "tokenizer_config.json").unlink()
    (folder / "added_tokens.json").write_text('{"<wren>": 512}')
    commit = hub.add(NAME, folder)
    hub.tokens.add(TOKEN)
    plan = loadkit.plan(NAME)
    hub.faults.append(Fault("/added_tokens.json", times=-1, status=503))
    theirs = transformers.AutoTokenizer.from_pretrained(NAME, revision=commit)
    assert "<wren>" not in theirs.get_vocab()
    assert "HTTP 503" in refused(plan)
    with pytest.raises(loadkit.LoadError, match="HTTP 503"):
        loadkit.load_processing_class(plan)


def test_what_transformers_asks_for_itself_and_does_not_get_is_told(
    hub: HubServer, tiny: Tiny, waits: list[float]
) -> None:
    """Somebody else put the weights into the cache, so that loadkit takes the rest for cached too."""
    hub.add(NAME, tiny("mistral"))
    hub.tokens.add(TOKEN)
    hf_hub_download(NAME, WEIGHTS)
    hub.faults.append(Fault("/tokenizer.json", ("GET",), times=-1, status=503))
    said = refused(NAME)
    assert f"the tokenizer of {NAME!r}" in said
    assert f"127.0.0.1:{hub.port} answered with HTTP 503" in said
    assert said.count("fix: ") == 1


def test_a_file_that_is_not_there_is_no_trouble_with_the_hub(hub: HubServer, tiny: Tiny) -> None:
    hub.add(NAME, tiny("mistral"))
    plan = loadkit.plan(NAME)
    with pytest.raises(RemoteEntryNotFoundError) as caught:
        hf_hub_download(NAME, "nothing.json")
    assert explain(caught.value, plan) is None


@pytest.mark.parametrize("asks", ["loadkit", "transformers", "loadkit, for the adapter"])
def test_a_token_that_cannot_be_sent_is_in_no_traceback(
    hub: HubServer, tiny: Tiny, tmp_path: Path, asks: str
) -> None:
    """The HTTP library quotes it."""
    hub.add("owner/base", tiny("mistral"))
    hub.add(NAME, adapter_of("owner/base", tiny, tmp_path / "adapter"))
    plan = loadkit.plan(NAME)
    if asks == "transformers":  # for the tokenizer: with the weights there, all is taken for cached
        hf_hub_download("owner/base", WEIGHTS, revision=plan.checkpoint.commit)
    token = TOKEN + "\n"
    if "adapter" in asks:
        with pytest.raises(loadkit.LoadError, match="characters that can't be sent") as caught:
            fetch_adapters(plan, read_load_facts(plan), token)
        assert TOKEN not in printed(caught.value)
    else:
        assert "characters that can't be sent" in refused(plan, token)


def test_what_is_cached_loads_without_asking(hub: HubServer, tiny: Tiny) -> None:
    hub.add(NAME, tiny("mistral"))
    commit = loadkit.load(NAME).plan.checkpoint.commit
    asked = len(hub.answers)
    assert loadkit.load(NAME, local_files_only=True).plan.checkpoint.commit == commit
    assert len(hub.answers) == asked


# Connections that break


def after(hub: HubServer, name: str = WEIGHTS) -> list[str]:
    """The ranges that a file was asked for, "" for the whole."""
    return [a.range for a in hub.answers if a.method == "GET" and a.path.endswith(f"/{name}")]


@pytest.mark.usefixtures("small_chunks")
def test_a_download_that_breaks_off_goes_on_where_it_was(
    hub: HubServer, tiny: Tiny, waits: list[float]
) -> None:
    hub.add(NAME, tiny("mistral"))
    plan = loadkit.plan(NAME)
    hub.answers.clear()
    hub.faults.append(Fault(f"/{WEIGHTS}", ("GET",), cut=5 * PIECE))
    hub.faults.append(Fault(f"/{WEIGHTS}", ("GET",), cut=3 * PIECE))
    assert same(weights(plan), weights(tiny("mistral")))
    assert after(hub) == ["", f"bytes={5 * PIECE}-", f"bytes={8 * PIECE}-"]
    assert hub.bytes_of(WEIGHTS) == (tiny("mistral") / WEIGHTS).stat().st_size


@pytest.mark.usefixtures("small_chunks")
def test_a_download_that_stalls_goes_on_where_it_was(
    hub: HubServer, tiny: Tiny, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(NAME, tiny("mistral"))
    plan = loadkit.plan(NAME)
    hub.answers.clear()
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1.5)
    hub.faults.append(Fault(f"/{WEIGHTS}", ("GET",), times=2, pause=60))
    assert same(weights(plan), weights(tiny("mistral")))
    assert after(hub) == ["", f"bytes={PIECE}-", f"bytes={2 * PIECE}-"]


def test_a_slow_download_is_left_alone(hub: HubServer, tiny: Tiny) -> None:
    hub.add(NAME, tiny("mistral"))
    hub.faults.append(Fault(f"/{WEIGHTS}", ("GET",), times=-1, pause=0.02))
    assert same(weights(NAME), weights(tiny("mistral")))
    assert after(hub)[1:] == [""]


def test_a_reset_connection_is_tried_again(hub: HubServer, tiny: Tiny, waits: list[float]) -> None:
    """huggingface_hub doesn't resume after a reset; the file is asked for again, from its beginning."""
    hub.add(NAME, tiny("mistral"))
    plan = loadkit.plan(NAME)
    hub.answers.clear()
    hub.faults.append(Fault(f"/{WEIGHTS}", ("GET",), cut=5 * PIECE, reset=True))
    assert same(weights(plan), weights(tiny("mistral")))
    assert after(hub) == ["", ""]


@pytest.mark.parametrize("reset", [False, True])
def test_a_connection_that_always_breaks_is_told(
    hub: HubServer, tiny: Tiny, cache: Path, waits: list[float], reset: bool
) -> None:
    hub.add(NAME, tiny("mistral"))
    hub.tokens.add(TOKEN)
    plan = loadkit.plan(NAME)
    hub.faults.append(Fault(f"/{WEIGHTS}", ("GET",), times=-1, cut=100, reset=reset))
    said = refused(plan)
    assert f"no connection to 127.0.0.1:{hub.port}" in said
    assert said.count("fix: ") == 1
    assert WEIGHTS not in blobs(cache)


LOAD_A_PLAN = """
import os, sys
from pathlib import Path
import pytest
from hub_server import point_to
import loadkit

with pytest.MonkeyPatch.context() as patch:
    point_to(patch, os.environ["HF_ENDPOINT"], Path(os.environ["HF_HOME"]))
    loadkit.load(loadkit.Plan.from_json(Path(sys.argv[1]).read_text()))
"""


def test_a_killed_process_leaves_nothing_that_is_taken_for_whole(
    hub: HubServer, tiny: Tiny, forks: Forks, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = sharded(tiny("mistral"), tmp_path / "m")
    first, second, third = sorted(path.name for path in folder.glob("*.safetensors"))
    hub.add(NAME, folder)
    plan = loadkit.plan(NAME)
    (tmp_path / "plan.json").write_text(plan.to_json())
    hub.answers.clear()
    hub.faults += [Fault(f"/{name}", ("GET",), times=-1, pause=1) for name in (second, third)]
    environ = {"HF_ENDPOINT": hub.url, "HF_HOME": str(cache.parent), "HF_HUB_OFFLINE": "0"}
    process = forks.start(LOAD_A_PLAN, tmp_path / "plan.json", environ=environ)
    try:
        while process.returncode is None and not (
            first in blobs(cache) and hub.bytes_of(second) and hub.bytes_of(third)
        ):
            time.sleep(0.01)
        assert process.returncode is None
    finally:
        process.kill()
    assert list(cache.glob("models--*/blobs/*.incomplete"))  # it was in the middle
    assert not {second, third} & blobs(cache)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    said = refused(plan)
    assert second in said
    assert third in said
    assert first not in said
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.faults.clear()
    hub.answers.clear()
    assert same(weights(plan), weights(folder))
    assert hub.bytes_of(first) == 0
    assert hub.bytes_of(second) == (folder / second).stat().st_size


# Files that aren't what was promised


@pytest.mark.parametrize(
    ("fault", "word"),
    [
        (Fault(f"/{WEIGHTS}", ("GET",), garble=True), "isn't the file that its hash names"),
        (Fault(f"/{WEIGHTS}", ("GET",), shorten=100), "didn't arrive whole"),
        (Fault(f"/{WEIGHTS}", times=2, shorten=100), "isn't the file that its hash names"),
    ],
    ids=["other bytes", "shorter than promised", "shorter, and promised so"],
)
def test_a_damaged_file_is_refused_and_not_kept(
    hub: HubServer, tiny: Tiny, cache: Path, fault: Fault, word: str
) -> None:
    folder = tiny("mistral")
    hub.add(NAME, folder)
    hub.tokens.add(TOKEN)
    plan = loadkit.plan(NAME)
    hub.faults.append(fault)
    said = refused(plan)
    assert word in said
    assert f"127.0.0.1:{hub.port}" in said
    assert "load again" in said
    assert WEIGHTS not in blobs(cache)
    assert same(weights(plan), weights(folder))


def test_a_damaged_adapter_is_refused_and_not_kept(
    hub: HubServer, tiny: Tiny, tmp_path: Path, cache: Path, waits: list[float]
) -> None:
    hub.add("owner/base", tiny("mistral"))
    hub.add(NAME, adapter_of("owner/base", tiny, tmp_path / "adapter"))
    hub.tokens.add(TOKEN)
    plan = loadkit.plan(NAME)
    hub.faults.append(Fault("/adapter_model.safetensors", times=2, shorten=100))
    assert "adapter_model.safetensors of 'owner/name'" in refused(plan)
    assert "adapter_model.safetensors" not in blobs(cache)
    loadkit.load(plan)
    hub.faults.append(Fault("/adapter_model.safetensors", times=-1, status=503))
    shutil.rmtree(cache / "models--owner--name")
    assert "HTTP 503" in refused(plan)


# Where large files really lie


@pytest.mark.usefixtures("small_chunks")
def test_large_files_come_from_another_host_that_sees_no_token(
    hub: HubServer, tiny: Tiny, waits: list[float]
) -> None:
    hub.tokens.add(TOKEN)
    hub.add(NAME, tiny("mistral"), access="private")
    hub.storage = f"localhost:{hub.port}"
    plan = loadkit.plan(NAME, token=TOKEN)
    hub.faults.append(Fault("/lfs/", ("GET",), cut=5 * PIECE))
    assert same(weights(plan, token=TOKEN), weights(tiny("mistral")))
    stored = [answer for answer in hub.answers if answer.path.startswith("/lfs/")]
    assert [answer.range for answer in stored if answer.method == "GET"] == [
        "bytes=0-65535",
        "",
        f"bytes={5 * PIECE}-",
    ]
    assert {(answer.host, answer.token) for answer in stored} == {(hub.storage, "")}
    assert TOKEN in {answer.token for answer in hub.answers}


# Without the network


def test_a_second_load_downloads_no_weights_and_an_offline_one_asks_nothing(
    hub: HubServer, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = sharded(tiny("mistral"), tmp_path / "m")
    hub.add(NAME, folder)
    first = weights(NAME)
    assert same(first, weights(folder))
    hub.answers.clear()
    assert same(weights(NAME), first)
    assert not [answer.path for answer in hub.answers if answer.path.endswith(".safetensors")]
    hub.answers.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    loaded = loadkit.load(NAME)
    assert same(loaded.model.state_dict(), first)
    assert loaded.tokenizer("a")["input_ids"] == loadkit.load_processing_class(folder)("a")["input_ids"]
    assert hub.answers == []


def test_a_load_when_the_hub_is_down_uses_the_cache(hub: HubServer, tiny: Tiny, waits: list[float]) -> None:
    hub.add(NAME, tiny("mistral"))
    first = weights(NAME)
    hub.failing = 503
    loaded = loadkit.load(NAME)
    assert same(loaded.model.state_dict(), first)
    assert [problem.code for problem in loaded.plan.warnings] == ["hub-unreachable"]
    # A Hub that was down while planning isn't asked again, and again.
    failed = {answer.path for answer in hub.answers if answer.status == 503}
    assert failed == {"/api/models/owner/name"}


@pytest.mark.parametrize("planned", ["online", "offline"])
def test_a_shard_that_is_not_cached_is_named(
    hub: HubServer, tiny: Tiny, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, planned: str
) -> None:
    hub.add(NAME, sharded(tiny("mistral"), tmp_path / "m"))
    plan = loadkit.load(NAME).plan
    shard = "model-00002-of-00003.safetensors"
    next(cache.glob(f"models--*/snapshots/*/{shard}")).resolve().unlink()
    hub.answers.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    said = refused(plan if planned == "online" else NAME)
    assert shard in said
    assert "model-00001-of-00003.safetensors" not in said
    assert f"hf download {NAME} --revision {plan.checkpoint.commit}" in said
    assert hub.answers == []
