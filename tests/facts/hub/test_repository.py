"""`read_checkpoint` on Hub repositories: the real client, over real HTTP, against a Hub on this machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import huggingface_hub
import msgspec
import numpy as np
import pytest
from handmade import CONFIG, SHAPES, write_adapter, write_json, write_model, write_sharded
from hub_server import HubServer, point_to
from huggingface_hub import constants
from safetensors.numpy import save_file

from loadkit.errors import Problem
from loadkit.facts.checkpoint.checkpoint import Checkpoint
from loadkit.facts.checkpoint.read import read_checkpoint

REPOSITORY = "owner/tiny"
HEADER_READ = 65_536


def read(source: str = REPOSITORY, **options: object) -> tuple[Checkpoint, dict[str, Problem]]:
    """Read, and give the problems by their codes."""
    checkpoint, problems = read_checkpoint(source, **options)  # type: ignore[arg-type]
    assert all(p.message and p.remedy and p.stage == "checkpoint" and p.plugin == "loadkit" for p in problems)
    assert len({p.code for p in problems}) == len(problems), problems
    return checkpoint, {p.code: p for p in problems}


def only(source: str = REPOSITORY, **options: object) -> Problem:
    """Read, and give the only problem."""
    _, problems = read(source, **options)
    assert len(problems) == 1, problems
    return next(iter(problems.values()))


def requests(hub: HubServer, word: str) -> int:
    return sum(word in answer.path for answer in hub.answers)


# What is read, and what it costs


def test_a_repository_is_read(hub: HubServer, tmp_path: Path, cache: Path) -> None:
    folder = write_model(tmp_path / "m", generation_config={"eos_token_id": 2})
    (folder / "chat_template.jinja").write_text("T")
    commit = hub.add(REPOSITORY, folder)
    said: list[str] = []
    checkpoint, problems = read(progress=said.append)
    assert problems == {}
    assert (checkpoint.source, checkpoint.kind, checkpoint.location) == (REPOSITORY, "hub", REPOSITORY)
    assert (checkpoint.revision, checkpoint.commit) == ("", commit)
    assert checkpoint.config == CONFIG
    assert checkpoint.generation_config == {"eos_token_id": 2}
    assert checkpoint.processing.chat_template == "T"
    assert {name: header.shape for name, header in checkpoint.tensors.items()} == SHAPES
    assert checkpoint.weight_files == ("model.safetensors",)
    assert {f.name: f.size for f in checkpoint.files} == {p.name: p.stat().st_size for p in folder.iterdir()}
    assert said == [f"asking {hub.url.removeprefix('http://')} about {REPOSITORY}"]
    # Small files are in the cache afterwards, at that commit; weights are not.
    cached = {p.name for p in (cache / "models--owner--tiny" / "snapshots" / commit).iterdir()}
    assert cached == {"config.json", "generation_config.json", "chat_template.jinja"}


def test_a_repository_and_a_folder_read_the_same(hub: HubServer, tmp_path: Path) -> None:
    folder = write_sharded(tmp_path / "m", 5)
    hub.add(REPOSITORY, folder)
    there, here = read()[0], read(str(folder))[0]
    same = (
        "config",
        "tensors",
        "weight_files",
        "weight_format",
        "files",
    )
    assert {name: getattr(there, name) for name in same} == {name: getattr(here, name) for name in same}
    where = {"location": "", "commit": ""}
    there_processing, here_processing = (
        msgspec.structs.replace(c.processing, **where) for c in (there, here)
    )
    assert there_processing == here_processing


def test_the_commit_is_asked_for_once_and_serves_everything(hub: HubServer, tmp_path: Path) -> None:
    commit = hub.add(REPOSITORY, write_sharded(tmp_path / "m", 4))
    read()
    assert requests(hub, "/api/models/") == 1
    files = [answer.path for answer in hub.answers if "/resolve/" in answer.path]
    assert files
    assert all(f"/resolve/{commit}/" in path for path in files)


def test_weights_are_never_downloaded(hub: HubServer, tmp_path: Path) -> None:
    folder = write_sharded(tmp_path / "m", 3, shape=(1024, 1024))  # 2 MB a shard
    hub.add(REPOSITORY, folder)
    checkpoint, problems = read()
    assert problems == {}
    assert checkpoint.weight_bytes == 3 * 2 * 1024 * 1024
    for name in checkpoint.weight_files:
        assert 0 < hub.bytes_of(name) <= HEADER_READ
        assert requests(hub, name) == 1
    hub.answers.clear()
    assert read()[0] == checkpoint
    assert sum(a.sent for a in hub.answers) <= 3 * HEADER_READ + 10_000


@pytest.mark.parametrize("ignores_ranges", [False, True])
def test_a_long_header_takes_a_second_range_and_no_more(
    hub: HubServer, tmp_path: Path, ignores_ranges: bool
) -> None:
    hub.ignores_ranges = ignores_ranges
    folder = write_model(tmp_path / "m")
    tensors = {f"model.layers.{n}.{'x' * 100}.weight": np.ones((64, 16), np.float16) for n in range(1000)}
    save_file(tensors, folder / "model.safetensors")
    header = int.from_bytes((folder / "model.safetensors").read_bytes()[:8], "little")
    assert header > HEADER_READ
    hub.add(REPOSITORY, folder)
    checkpoint, problems = read()
    assert problems == {}
    assert len(checkpoint.tensors) == 1000
    served = [a.status for a in hub.answers if a.path.endswith("/model.safetensors")]
    if ignores_ranges:
        assert served == [200, 200]
    else:
        assert served == [206, 206]
        assert hub.bytes_of("model.safetensors") == header + 8


def test_a_server_that_ignores_ranges_is_not_drained(hub: HubServer, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", {"big": (16, 1024, 1024)})  # 32 MB
    hub.add(REPOSITORY, folder)
    hub.ignores_ranges = True
    checkpoint, problems = read()
    assert problems == {}
    assert checkpoint.tensors["big"].shape == (16, 1024, 1024)
    # What lies in the buffers of the connection is counted too.
    assert hub.bytes_of("model.safetensors") < 16 * 1024 * 1024


def test_cached_weights_are_read_from_the_cache(hub: HubServer, tmp_path: Path, cache: Path) -> None:
    commit = hub.add(REPOSITORY, write_model(tmp_path / "m"))
    path = huggingface_hub.hf_hub_download(REPOSITORY, "model.safetensors", cache_dir=cache)
    hub.answers.clear()
    assert read()[1] == {}
    assert hub.bytes_of("model.safetensors") == 0
    # That copy is what will be loaded, so its damage counts, not the size on the Hub.
    os.truncate(os.path.realpath(path), 500)
    problem = only()
    assert problem.code == "truncated-weights"
    assert "found 500 bytes" in problem.message
    assert commit in path


def test_revisions_are_branches_tags_and_commits(hub: HubServer, tmp_path: Path) -> None:
    first = hub.add(REPOSITORY, write_model(tmp_path / "one", generation_config={"n": 1}))
    second = hub.add(
        REPOSITORY, write_model(tmp_path / "two", generation_config={"n": 2}), branch="refs/pr/1"
    )
    for revision, commit, number in (
        ("", first, 1),
        ("main", first, 1),
        ("refs/pr/1", second, 2),
        (second, second, 2),
        (second[:8], second, 2),
    ):
        checkpoint, problems = read(revision=revision)
        assert problems == {}
        assert (checkpoint.revision, checkpoint.commit) == (revision, commit)
        assert checkpoint.generation_config == {"n": number}


def test_an_existing_folder_goes_before_a_repository(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(REPOSITORY, write_model(tmp_path / "m"))
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "owner" / "tiny")
    assert read()[0].kind == "folder"
    assert hub.answers == []


def test_the_environment_is_honoured(tmp_path: Path) -> None:
    """HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE, in processes that import huggingface_hub with them
    set."""
    code = (
        "from loadkit.facts.checkpoint.read import read_checkpoint; import sys; "
        f"checkpoint, problems = read_checkpoint({REPOSITORY!r}); "
        "print(checkpoint.commit, len(checkpoint.tensors), *(p.code for p in problems)); "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )

    def run(**extra: str) -> str:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
        environment |= {"HF_HOME": str(tmp_path / "home"), **extra}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    with HubServer() as hub:
        hub.tokens.add("hf_good")
        commit = hub.add(REPOSITORY, write_model(tmp_path / "m"), access="private")
        assert run(HF_ENDPOINT=hub.url) == "0 no-such-repository"
        assert run(HF_ENDPOINT=hub.url, HF_TOKEN="hf_good") == f"{commit} 3"
        served = len(hub.answers)
        assert run(HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1") == f"{commit} 0 offline-not-cached"
        assert len(hub.answers) == served
    assert (tmp_path / "home" / "hub" / "models--owner--tiny" / "refs" / "main").read_text() == commit


# Without the network


def cached_whole(hub: HubServer, folder: Path) -> str:
    """Put a repository into the cache, weights included, as loading it does."""
    commit = hub.add(REPOSITORY, folder)
    huggingface_hub.snapshot_download(REPOSITORY)
    hub.answers.clear()
    return commit


@pytest.mark.parametrize("how", ["local_files_only", "HF_HUB_OFFLINE", "unreachable", "broken"])
def test_the_cache_serves_without_the_hub(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    commit = cached_whole(hub, write_sharded(tmp_path / "m"))
    options: dict[str, object] = {}
    if how == "local_files_only":
        options["local_files_only"] = True
    elif how == "HF_HUB_OFFLINE":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    elif how == "unreachable":
        point_to(monkeypatch, "http://127.0.0.1:9", tmp_path / "home")
    else:
        hub.failing = 503
        monkeypatch.setattr(time, "sleep", lambda _: None)
    checkpoint, problems = read(**options)
    assert (checkpoint.kind, checkpoint.location, checkpoint.commit) == ("hub", REPOSITORY, commit)
    assert len(checkpoint.tensors) == 3
    assert len(checkpoint.files) == 5
    if how in ("unreachable", "broken"):
        assert list(problems) == ["hub-unreachable"]
        assert problems["hub-unreachable"].severity == "warning"
        assert commit[:12] in problems["hub-unreachable"].message
    else:
        assert problems == {}
        assert hub.answers == []


def test_what_was_planned_online_resolves_offline(hub: HubServer, tmp_path: Path) -> None:
    """Planning leaves a note of the commit; only the weights are missing then."""
    commit = hub.add(REPOSITORY, write_model(tmp_path / "m"), branch="refs/pr/7")
    read(revision="refs/pr/7")
    checkpoint, problems = read(revision="refs/pr/7", local_files_only=True)
    assert checkpoint.commit == commit
    assert checkpoint.config == CONFIG
    assert list(problems) == ["offline-not-cached"]
    assert "model.safetensors" in problems["offline-not-cached"].message
    assert f"hf download {REPOSITORY} --revision {commit}" in problems["offline-not-cached"].remedy


def test_missing_shards_in_the_cache_are_not_called_missing_on_the_hub(
    hub: HubServer, tmp_path: Path
) -> None:
    hub.add(REPOSITORY, write_sharded(tmp_path / "m"))
    read()
    assert only(local_files_only=True).code == "offline-not-cached"


def test_what_is_not_cached_is_reported_with_what_is(hub: HubServer, tmp_path: Path, cache: Path) -> None:
    problem = only(local_files_only=True)
    assert problem.code == "offline-not-cached"
    assert "local_files_only is set" in problem.message
    assert str(cache) in problem.message
    assert f"hf download {REPOSITORY}" in problem.remedy
    cached_whole(hub, write_model(tmp_path / "m"))
    problem = only(revision="v2", local_files_only=True)
    assert "cached of it: main" in problem.message
    assert only(revision="0" * 40, local_files_only=True).code == "offline-not-cached"
    # A revision is no way to files outside of the cache's references.
    references = cache / "models--owner--tiny" / "refs"
    (references.parent / "main").write_text((references / "main").read_text())
    assert only(revision="../main", local_files_only=True).code == "offline-not-cached"


def test_a_cache_may_be_elsewhere_and_must_be_writable(hub: HubServer, tmp_path: Path, cache: Path) -> None:
    hub.add(REPOSITORY, write_model(tmp_path / "m"))
    assert read(cache_dir=tmp_path / "other")[1] == {}
    assert (tmp_path / "other" / "models--owner--tiny").is_dir()
    assert not cache.exists()
    (tmp_path / "file").touch()
    problem = only(cache_dir=tmp_path / "file")
    assert problem.code == "cache-unwritable"
    assert "HF_HOME" in problem.remedy


# What the Hub refuses


def test_an_unknown_repository_is_reported(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "owner" / "tiny-2").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    checkpoint, problems = read()
    assert list(problems) == ["no-such-repository"]
    problem = problems["no-such-repository"]
    assert REPOSITORY in problem.message
    assert hub.url.removeprefix("http://") in problem.message
    assert "there is no folder 'owner/tiny' here either" in problem.message
    assert str(tmp_path / "owner" / "tiny-2") in problem.remedy
    assert (checkpoint.kind, checkpoint.location) == ("hub", REPOSITORY)


def test_a_private_repository_opens_with_a_token_only(hub: HubServer, tmp_path: Path) -> None:
    hub.tokens |= {"hf_secret"}
    hub.add(REPOSITORY, write_model(tmp_path / "m"), access="private")
    problem = only()
    assert problem.code == "no-such-repository"
    assert "private" in problem.message
    assert "hf auth login" in problem.remedy
    assert read(token="hf_secret")[1] == {}
    assert all(a.token == "hf_secret" for a in hub.answers[-3:])


def test_a_gated_repository_is_reported_once_and_asked_no_more(hub: HubServer, tmp_path: Path) -> None:
    hub.tokens |= {"hf_secret"}
    folder = write_model(tmp_path / "m", tokenizer_config={}, generation_config={})
    hub.add(REPOSITORY, folder, access="gated")
    problem = only()
    assert problem.code == "gated"
    assert "accept the licence on" in problem.remedy
    assert hub.url.removeprefix("http://") + "/" + REPOSITORY in problem.remedy
    assert hub.bytes_of("model.safetensors") == 0
    assert not [a for a in hub.answers if a.path.endswith("/model.safetensors")]
    assert read(token="hf_secret")[1] == {}


@pytest.mark.parametrize("token", ["hf_unknownunknown", "hf_with_a_line_break\n", "hf_ümlaut"])
def test_a_bad_token_is_reported_without_quoting_it(hub: HubServer, tmp_path: Path, token: str) -> None:
    hub.add(REPOSITORY, write_model(tmp_path / "m"))
    problem = only(token=token)
    assert problem.code == "bad-token"
    assert token.strip() not in repr(problem)
    assert "HF_TOKEN" in problem.remedy


def test_a_token_that_is_not_there_is_reported(hub: HubServer) -> None:
    assert only(token=True).code == "bad-token"


def test_an_unknown_revision_is_reported_with_those_there_are(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPOSITORY, write_model(tmp_path / "m"))
    hub.add(REPOSITORY, write_model(tmp_path / "m"), branch="step-1000")
    problem = only(revision="step1000")
    assert problem.code == "no-such-revision"
    assert "'step1000'" in problem.message
    assert "main, step-1000" in problem.message
    assert "did you mean 'step-1000'?" in problem.remedy


@pytest.mark.parametrize(
    ("status", "code", "word"),
    [
        (500, "hub-unreachable", "HTTP 500"),
        (503, "hub-unreachable", "HTTP 503"),
        (429, "hub-unreachable", "limits the rate"),
        (403, "no-access", "HTTP 403"),
    ],
)
def test_a_refusal_is_reported_with_the_host(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, status: int, code: str, word: str
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    hub.failing = status
    problem = only()
    assert problem.code == code
    assert word in problem.message
    assert hub.url.removeprefix("http://") in problem.message


def test_a_hub_that_breaks_down_after_the_first_answer_is_reported_once(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(REPOSITORY, write_model(tmp_path / "m", generation_config={}, tokenizer_config={}))
    hub.failing, hub.failing_on = 502, "/resolve/"
    monkeypatch.setattr(time, "sleep", lambda _: None)  # huggingface_hub waits between its attempts
    checkpoint, problems = read()
    assert list(problems) == ["hub-unreachable"]
    assert "HTTP 502" in problems["hub-unreachable"].message
    assert len(checkpoint.files) == 4


def test_no_connection_is_reported_with_the_host(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    point_to(monkeypatch, f"http://user:password@127.0.0.1:{port}", tmp_path / "home")
    problem = only()
    assert problem.code == "hub-unreachable"
    assert f"127.0.0.1:{port}" in problem.message
    assert "password" not in repr(problem)
    assert "HF_ENDPOINT" in problem.remedy


def test_a_hub_that_does_not_answer_is_reported(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        point_to(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}", tmp_path / "home")
        monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.2)
        problem = only()
    assert problem.code == "hub-unreachable"
    assert "didn't answer in time" in problem.message


def test_something_that_is_no_hub_is_reported(hub: HubServer) -> None:
    hub.is_no_hub = True
    problem = only()
    assert problem.code == "hub-unreachable"
    assert "doesn't understand" in problem.message


# What the repository holds


def test_problems_of_the_files_come_together(hub: HubServer, tmp_path: Path) -> None:
    folder = write_sharded(tmp_path / "m", 4)
    (folder / "generation_config.json").write_text("{\n nonsense")
    (folder / "model-00001-of-00004.safetensors").unlink()
    shard = folder / "model-00002-of-00004.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    (folder / "model-00003-of-00004.safetensors").write_bytes(b"\xff" * 100)
    commit = hub.add(REPOSITORY, folder)
    checkpoint, problems = read()
    assert set(problems) == {"bad-json", "missing-weight-file", "truncated-weights", "bad-header"}
    assert "line 2" in problems["bad-json"].message
    assert commit[:12] in problems["missing-weight-file"].message
    assert set(checkpoint.tensors) == {"layers.4.weight"}


def test_an_empty_weight_file_is_truncated(hub: HubServer, tmp_path: Path) -> None:
    (write_model(tmp_path / "m") / "model.safetensors").write_bytes(b"")
    hub.add(REPOSITORY, tmp_path / "m")
    assert only().code == "truncated-weights"


def test_a_connection_that_drops_is_tried_again(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPOSITORY, write_model(tmp_path / "m"))
    read()
    hub.drops = 1
    assert read()[1] == {}
    assert hub.drops == 0
    hub.drops = 100
    assert only().code == "hub-unreachable"
    assert hub.drops == 97


@pytest.mark.parametrize(
    ("files", "code"),
    [
        (["README.md"], "no-config"),
        (["config.json"], "no-weights"),
        (["config.json", "pytorch_model.bin"], "pickle-weights"),
    ],
)
def test_repositories_without_a_model_are_reported(
    hub: HubServer, tmp_path: Path, files: list[str], code: str
) -> None:
    for name in files:
        write_json(tmp_path / "m" / name, CONFIG)
    hub.add(REPOSITORY, tmp_path / "m")
    assert only().code == code


# Adapters


def test_an_adapter_and_its_base_are_at_commits_of_their_own(hub: HubServer, tmp_path: Path) -> None:
    base = hub.add("owner/base", write_model(tmp_path / "base"))
    adapter = hub.add(REPOSITORY, write_adapter(tmp_path / "adapter", "owner/base"))
    checkpoint, problems = read()
    assert problems == {}
    assert (checkpoint.source, checkpoint.location, checkpoint.commit) == (REPOSITORY, "owner/base", base)
    assert checkpoint.adapter is not None
    assert (checkpoint.adapter.location, checkpoint.adapter.commit) == (REPOSITORY, adapter)
    assert len(checkpoint.adapter.tensors) == 1


def test_each_revision_goes_to_its_own_repository(hub: HubServer, tmp_path: Path) -> None:
    hub.add("owner/base", write_model(tmp_path / "base"))
    old = hub.add("owner/base", write_model(tmp_path / "old", generation_config={}), branch="old")
    older = hub.add("owner/base", write_model(tmp_path / "older", tokenizer_config={}), branch="older")
    first = hub.add(REPOSITORY, write_adapter(tmp_path / "a", "owner/base", revision="old"))
    best = hub.add(REPOSITORY, write_adapter(tmp_path / "b", "owner/base", r=8), branch="best")

    def commits(**options: object) -> tuple[str, str, str]:
        checkpoint, problems = read(**options)
        assert problems == {}
        assert checkpoint.adapter is not None
        return checkpoint.revision, checkpoint.commit, checkpoint.adapter.commit

    assert commits() == ("old", old, first)  # as its config says
    assert commits(revision="older") == ("older", older, first)  # not a revision of the adapter
    assert commits(revision="old", adapter_revision="best") == ("old", old, best)
    main = hub.repositories["owner/base"].branches["main"]
    assert commits(revision="main") == ("main", main, first)
    assert commits(adapter_revision="best") == ("", main, best)
    assert only(adapter_revision="worst").code == "no-such-revision"
    assert only(revision="worst").code == "no-such-revision"
    assert only("owner/base", adapter_revision="old").code == "not-an-adapter"


def test_an_adapter_on_a_branch_of_its_model(hub: HubServer, tmp_path: Path) -> None:
    model = hub.add(REPOSITORY, write_model(tmp_path / "model"))
    adapter = hub.add(REPOSITORY, write_adapter(tmp_path / "adapter", REPOSITORY), branch="lora")
    checkpoint, problems = read(revision="lora")
    assert problems == {}
    assert checkpoint.commit == model
    assert checkpoint.adapter is not None
    assert checkpoint.adapter.commit == adapter


def test_an_adapter_repository_with_a_whole_model_is_an_adapter_as_in_transformers(
    hub: HubServer, tmp_path: Path
) -> None:
    hub.add("owner/base", write_model(tmp_path / "base"))
    hub.add(REPOSITORY, write_adapter(write_model(tmp_path / "both"), "owner/base"))
    checkpoint, problems = read()
    assert checkpoint.location == "owner/base"
    assert list(problems) == ["embedded-adapter"]
    assert problems["embedded-adapter"].severity == "warning"


def test_a_base_that_is_not_there_is_reported_with_both_names(hub: HubServer, tmp_path: Path) -> None:
    hub.tokens |= {"hf_secret"}
    hub.add(REPOSITORY, write_adapter(tmp_path / "adapter", "owner/base"))
    checkpoint, problems = read()
    assert list(problems) == ["missing-base"]
    assert REPOSITORY in problems["missing-base"].message
    assert "'owner/base'" in problems["missing-base"].message
    assert checkpoint.adapter is not None
    assert checkpoint.location == "owner/base"
    hub.add("owner/base", write_model(tmp_path / "base"), access="gated")
    assert only().code == "gated"


def test_an_adapter_of_an_adapter_is_refused(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPOSITORY, write_adapter(tmp_path / "one", "owner/two"))
    hub.add("owner/two", write_adapter(tmp_path / "two", "owner/three"))
    assert only().code == "adapter-of-adapter"


def test_an_adapter_in_the_cache_finds_its_base_there(hub: HubServer, tmp_path: Path) -> None:
    base = hub.add("owner/base", write_model(tmp_path / "base"), branch="v2")
    hub.add(REPOSITORY, write_adapter(tmp_path / "adapter", "owner/base"))
    huggingface_hub.snapshot_download(REPOSITORY)
    huggingface_hub.snapshot_download("owner/base", revision="v2")
    hub.failing = 500
    checkpoint, problems = read(revision="v2", local_files_only=True)
    assert problems == {}
    assert checkpoint.commit == base
    assert checkpoint.adapter is not None


def test_an_adapter_in_a_folder_may_have_its_base_on_the_hub(hub: HubServer, tmp_path: Path) -> None:
    hub.add("owner/base", write_model(tmp_path / "base"))
    v2 = hub.add("owner/base", write_model(tmp_path / "v2", generation_config={}), branch="v2")
    checkpoint, problems = read(str(write_adapter(tmp_path / "adapter", "owner/base")), revision="v2")
    assert problems == {}
    assert (checkpoint.kind, checkpoint.commit) == ("hub", v2)
