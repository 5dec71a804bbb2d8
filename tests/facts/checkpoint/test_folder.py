"""`read_checkpoint` on folders: what it reads, and every way a folder can be wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from handmade import CONFIG, SHAPES, raw_safetensors, write_adapter, write_json, write_model, write_sharded

from loadkit.errors import Problem
from loadkit.facts.checkpoint.checkpoint import Checkpoint, File
from loadkit.facts.checkpoint.folder import is_repository_id
from loadkit.facts.checkpoint.read import read_checkpoint

INDEX = "model.safetensors.index.json"


def read(source: str | os.PathLike[str], **options: object) -> tuple[Checkpoint, dict[str, Problem]]:
    """Read, and give the problems by their codes."""
    checkpoint, problems = read_checkpoint(source, **options)  # type: ignore[arg-type]
    assert all(p.message and p.remedy and p.stage == "checkpoint" and p.plugin == "loadkit" for p in problems)
    assert len({p.code for p in problems}) == len(problems), problems
    return checkpoint, {p.code: p for p in problems}


def only(source: str | os.PathLike[str], **options: object) -> Problem:
    """Read, and give the only problem."""
    _, problems = read(source, **options)
    assert len(problems) == 1, problems
    return next(iter(problems.values()))


# What is read


def test_a_whole_checkpoint_is_read(tmp_path: Path) -> None:
    folder = write_model(
        tmp_path / "tiny",
        generation_config={"eos_token_id": 2},
        tokenizer_config={"pad_token": "<pad>"},
        preprocessor_config={"size": 1, "crop": 2},
        processor_config={"size": 3},
    )
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    checkpoint, problems = read(folder)
    assert problems == {}
    assert (checkpoint.source, checkpoint.location) == (str(folder), str(folder))
    assert (checkpoint.kind, checkpoint.revision, checkpoint.commit) == ("folder", "", "")
    assert checkpoint.config == CONFIG
    assert checkpoint.generation_config == {"eos_token_id": 2}
    assert checkpoint.processing.tokenizer_config == {"pad_token": "<pad>"}
    assert checkpoint.processing.processor_config == {"size": 3, "crop": 2}
    assert checkpoint.processing.chat_template == "{{ messages }}"
    assert (checkpoint.weight_format, checkpoint.weight_files) == ("safetensors", ("model.safetensors",))
    assert {name: header.shape for name, header in checkpoint.tensors.items()} == SHAPES
    assert checkpoint.weight_bytes == 2 * (64 * 32 + 64 * 32 + 32)
    assert checkpoint.stored_dtype == "float16"
    assert checkpoint.adapter is None
    assert [f.name for f in checkpoint.files] == sorted(p.name for p in folder.iterdir())
    assert File(name="config.json", size=(folder / "config.json").stat().st_size) in checkpoint.files


def test_shards_are_read(tmp_path: Path) -> None:
    checkpoint, problems = read(write_sharded(tmp_path / "m", 3))
    assert problems == {}
    assert len(checkpoint.weight_files) == 3
    assert {name: header.file for name, header in checkpoint.tensors.items()} == {
        f"layers.{n}.weight": f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)
    }


def test_one_file_goes_before_an_index_as_in_transformers(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    write_model(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    assert read(tmp_path)[0].weight_files == ("model.safetensors",)


def test_the_config_may_name_the_weight_file(tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "other.safetensors")
    write_json(tmp_path / "config.json", {**CONFIG, "transformers_weights": "other.safetensors"})
    checkpoint, problems = read(tmp_path)
    assert problems == {}
    assert checkpoint.weight_files == ("other.safetensors",)
    write_json(tmp_path / "config.json", {**CONFIG, "transformers_weights": "../other.safetensors"})
    assert only(tmp_path).code == "path-escape"
    write_json(tmp_path / "config.json", {**CONFIG, "transformers_weights": "more.safetensors"})
    assert only(tmp_path).code == "missing-weight-file"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"tokenizer_config.json": {"chat_template": "T"}}, "T"),
        ({"tokenizer_config.json": {"chat_template": "T"}, "chat_template.jinja": "J"}, "J"),
        ({"chat_template.json": {"chat_template": "P"}, "chat_template.jinja": "J"}, "P"),
        ({"tokenizer_config.json": {"chat_template": [{"name": "default", "template": "D"}]}}, "D"),
        ({"tokenizer_config.json": {"chat_template": [{"name": "rag", "template": "R"}]}}, None),
        ({}, None),
    ],
)
def test_the_chat_template_in_force_is_found(
    tmp_path: Path, files: dict[str, object], expected: str | None
) -> None:
    write_model(tmp_path)
    for name, value in files.items():
        (tmp_path / name).write_text(value if isinstance(value, str) else json.dumps(value))
    assert read(tmp_path)[0].processing.chat_template == expected


def test_numbers_that_only_python_reads_are_read(tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "mamba2", "time_step_limit": [0.0, Infinity]}')
    checkpoint, problems = read(tmp_path)
    assert problems == {}
    assert checkpoint.config["time_step_limit"] == [0.0, float("inf")]


def test_files_in_folders_are_listed_and_hidden_folders_are_not(tmp_path: Path) -> None:
    write_model(tmp_path)
    write_json(tmp_path / "code" / "modeling.json", {})
    write_json(tmp_path / ".git" / "index.json", {})
    write_json(tmp_path / ".hidden.json", {})
    names = [f.name for f in read(tmp_path)[0].files]
    assert names == [".hidden.json", "code/modeling.json", "config.json", "model.safetensors"]


def test_links_count_as_files_and_broken_ones_do_not(tmp_path: Path) -> None:
    folder = tmp_path / "snapshot"
    blobs = write_model(folder / "blobs")
    for name in ("config.json", "model.safetensors"):
        (folder / name).symlink_to(blobs / name)
    (folder / "generation_config.json").symlink_to(blobs / "gone.json")
    (folder / "loop").symlink_to(folder)
    checkpoint, problems = read(folder)
    assert problems == {}
    assert [f.name for f in checkpoint.files if "/" not in f.name] == ["config.json", "model.safetensors"]
    (blobs / "model.safetensors").unlink()
    assert only(folder).code == "no-weights"


def test_a_source_may_be_a_path_object_or_start_at_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(tmp_path / "models" / "tiny")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    checkpoint, problems = read("~/models/tiny")
    assert problems == {}
    assert checkpoint.source == "~/models/tiny"
    assert checkpoint.location == str(tmp_path / "models" / "tiny")
    monkeypatch.chdir(tmp_path / "models")
    for source in ("tiny", "./tiny/", Path("tiny")):
        assert read(source)[0].location == str(tmp_path / "models" / "tiny")


def test_reading_a_folder_imports_no_heavy_package(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    code = (
        "import sys; from loadkit.facts.checkpoint.read import read_checkpoint; "
        f"found = read_checkpoint({str(tmp_path)!r}); assert found[0].tensors and not found[1]; "
        "print(*{'torch', 'transformers', 'numpy', 'safetensors', 'huggingface_hub', 'httpx2'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_weights_are_not_read(tmp_path: Path) -> None:
    """Only the header's bytes are there; the tensors are a hole of 1 TB that no read would get through."""
    write_model(tmp_path)
    header = {"big": {"dtype": "U8", "shape": [2**40], "data_offsets": [0, 2**40]}}
    start = raw_safetensors(header)
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(start)
        file.truncate(len(start) + 2**40)
    checkpoint, problems = read(tmp_path)
    assert problems == {}
    assert checkpoint.weight_bytes == 2**40


# Sources that are no folder


def test_a_missing_folder_is_reported_with_its_nearest_neighbour(tmp_path: Path) -> None:
    (tmp_path / "Mistral-7B").mkdir()
    problem = only(tmp_path / "mistral-7b-v1")
    assert problem.code == "no-such-folder"
    assert str(tmp_path / "mistral-7b-v1") in problem.message
    assert str(tmp_path / "Mistral-7B") in problem.remedy
    assert "owner/name" in problem.remedy


@pytest.mark.parametrize(
    "source",
    ["./x", "../x", "/x/y", "~/no/x", "a/b/c", "a\\b", "x/", ".x", "a b", "x..y", "a--b", "a\0b", ""],
)
def test_what_looks_like_a_path_is_not_asked_for_on_the_hub(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # importing it would fail
    checkpoint, problems = read(source)
    assert list(problems) == ["no-such-folder"]
    assert (checkpoint.source, checkpoint.kind, checkpoint.config) == (source, "folder", {})


def test_a_path_object_is_never_a_hub_id() -> None:
    assert only(Path("owner/name")).code == "no-such-folder"


@pytest.mark.parametrize(
    ("source", "fits"),
    [
        ("gpt2", True),
        ("mistralai/Mistral-7B-v0.1", True),
        ("a/b/c", False),
        ("-a/b", False),
        ("a-/b", False),
        ("a/b.", False),
        ("_a/b_", True),
        ("a/b.git", False),
        ("caf\u00e9", False),
        ("x" * 96, True),
        ("x" * 97, False),
    ],
)
def test_ids_are_judged_as_huggingface_hub_does(source: str, fits: bool) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    assert is_repository_id(source) == fits
    if fits:
        validate_repo_id(source)
    else:
        with pytest.raises(HFValidationError):
            validate_repo_id(source)


def test_a_file_and_an_address_are_kept_apart(tmp_path: Path) -> None:
    write_model(tmp_path)
    problem = only(tmp_path / "model.safetensors")
    assert problem.code == "no-such-folder"
    assert "is a file" in problem.message
    assert str(tmp_path) in problem.remedy
    for address in (
        "https://huggingface.co/owner/name/tree/main",
        "hf://owner/name",
        "hf://models/owner/name@v1",
    ):
        assert "'owner/name'" in only(address).remedy


def test_a_folder_has_no_revisions_but_main(tmp_path: Path) -> None:
    write_model(tmp_path)
    assert read(tmp_path, revision="main")[1] == {}
    problem = only(tmp_path, revision="v2")
    assert problem.code == "no-such-revision"
    assert "'v2'" in problem.message


# Configs


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([], "empty"),
        (["tokenizer.json", "tokenizer_config.json"], "a tokenizer without a model (tokenizer.json"),
        (["model_index.json"], "diffusers"),
        (["params.json", "consolidated.00.pth"], "maker's own layout"),
        (["llama.Q4.gguf"], "GGUF"),
        (["adapter_model.safetensors"], "without its adapter_config.json"),
        (["notes.txt"], "something else (it holds notes.txt)"),
    ],
)
def test_a_folder_without_a_config_is_described(tmp_path: Path, files: list[str], words: str) -> None:
    for name in files:
        (tmp_path / name).write_text("{}")
    problem = only(tmp_path)
    assert problem.code == "no-config"
    assert words in problem.message
    assert str(tmp_path) in problem.message


def test_weights_without_a_config_are_still_checked(tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "model.safetensors").write_bytes(b"")
    _, problems = read(tmp_path)
    assert set(problems) == {"no-config", "truncated-weights"}
    assert "weights without their config" in problems["no-config"].message


def test_the_output_folder_of_a_training_run_points_to_its_checkpoints(tmp_path: Path) -> None:
    write_model(tmp_path / "checkpoint-500")
    (tmp_path / "trainer_log.txt").touch()
    problem = only(tmp_path)
    assert problem.code == "no-config"
    assert "(it holds checkpoint-500/config.json" in problem.message
    assert "checkpoint-500" in problem.remedy


@pytest.mark.parametrize(
    ("content", "where"),
    [
        (b'{\n  "a": 1,\n  "b": tru\n}', "line 3, column 8"),
        (b"", "line 1, column 1"),
        (b'{"a": 1}\n}', "line 2, column 1"),
        (b'\xef\xbb\xbf{"a": 1}', "line 1, column 1"),
        (b'{\n"a": "\xff"}', "line 2, column 7"),
        (b"[" * 200_000, "too deeply"),
    ],
)
def test_bad_json_is_reported_with_line_and_column(tmp_path: Path, content: bytes, where: str) -> None:
    write_model(tmp_path)
    (tmp_path / "config.json").write_bytes(content)
    checkpoint, problems = read(tmp_path)
    assert list(problems) == ["bad-json"]
    assert "config.json" in problems["bad-json"].message
    assert where in problems["bad-json"].message
    assert checkpoint.tensors  # what can be read is read


@pytest.mark.parametrize("content", ["[]", "null", '"mistral"', "3"])
def test_a_config_that_is_no_object_is_reported(tmp_path: Path, content: str) -> None:
    write_model(tmp_path)
    (tmp_path / "config.json").write_text(content)
    problem = only(tmp_path)
    assert problem.code == "config-not-object"
    assert "config.json" in problem.message


@pytest.mark.skipif(
    not os.path.isfile("/proc/self/mem"), reason="a file that fails when read is found on Linux only"
)
def test_a_file_that_cannot_be_read_is_reported(tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / "generation_config.json").symlink_to(
        "/proc/self/mem"
    )  # reading its first page is an I/O error
    problem = only(tmp_path)
    assert problem.code == "link-outside"
    assert "generation_config.json" in problem.message


def test_a_file_without_permission_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path, generation_config={})
    real = open

    def refusing(path: object, *args: object, **kwargs: object) -> object:
        if str(path).endswith("generation_config.json"):
            raise PermissionError(13, "Permission denied")
        return real(path, *args, **kwargs)  # type: ignore[call-overload]

    monkeypatch.setattr("builtins.open", refusing)
    problem = only(tmp_path)
    assert problem.code == "unreadable-file"
    assert "Permission denied" in problem.message


def test_links_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    """A folder that was unpacked from somebody's archive may link to any file of its reader's."""
    folder = write_model(tmp_path / "model")
    (tmp_path / "secret.json").write_text('{"password": 1}')
    (folder / "tokenizer_config.json").symlink_to(tmp_path / "secret.json")
    problem = only(folder)
    assert problem.code == "link-outside"
    assert "copy the file" in problem.remedy
    (folder / "tokenizer_config.json").unlink()
    (folder / "inside.json").write_text("{}")
    (folder / "tokenizer_config.json").symlink_to(folder / "inside.json")
    assert read(folder)[1] == {}
    shutil.move(folder / "model.safetensors", tmp_path / "weights")
    (folder / "model.safetensors").symlink_to(tmp_path / "weights")
    assert only(folder).code == "link-outside"


def test_a_snapshot_of_the_hub_cache_is_a_folder(tmp_path: Path) -> None:
    whole = write_model(tmp_path / "whole")
    repository = tmp_path / "models--owner--tiny"
    snapshot = repository / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for path in whole.iterdir():
        shutil.copy(path, repository / "blobs" / path.name)
        (snapshot / path.name).symlink_to(Path("..") / ".." / "blobs" / path.name)
    assert read(snapshot)[1] == {}


# Weights


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["consolidated.safetensors"], "consolidated.safetensors"),
        (["model.Q4.gguf"], "GGUF"),
        (["adapter_model.safetensors"], "adapter"),
        (["tf_model.h5"], "TensorFlow"),
        (["model.fp16.safetensors"], "variant"),
        (["weights.safetensors"], "weights.safetensors"),
        ([], "config.json"),
    ],
)
def test_missing_weights_are_reported_with_what_is_there(
    tmp_path: Path, files: list[str], words: str
) -> None:
    write_json(tmp_path / "config.json", CONFIG)
    for name in files:
        (tmp_path / name).touch()
    checkpoint, problems = read(tmp_path)
    assert list(problems) == ["no-weights"]
    assert words in problems["no-weights"].message
    assert (checkpoint.weight_format, checkpoint.weight_files) == ("none", ())


@pytest.mark.parametrize("sharded", [False, True])
def test_pickled_weights_are_refused_unless_allowed(tmp_path: Path, sharded: bool) -> None:
    write_json(tmp_path / "config.json", CONFIG)
    if sharded:
        files: tuple[str, ...] = ("pytorch_model-1.bin", "pytorch_model-2.bin")
        weight_map = {"a": files[0], "b": files[1]}
        write_json(tmp_path / "pytorch_model.bin.index.json", {"metadata": {}, "weight_map": weight_map})
    else:
        files = ("pytorch_model.bin",)
    for name in files:
        (tmp_path / name).write_bytes(b"not read")
    checkpoint, problems = read(tmp_path)
    assert list(problems) == ["pickle-weights"]
    assert "allow_pickle=True" in problems["pickle-weights"].remedy
    checkpoint, problems = read(tmp_path, allow_pickle=True)
    assert problems == {}
    assert (checkpoint.weight_format, checkpoint.weight_files, checkpoint.tensors) == ("pickle", files, {})


def test_an_index_of_safetensors_cannot_smuggle_in_a_pickle(tmp_path: Path) -> None:
    write_sharded(tmp_path, 2)
    index = json.loads((tmp_path / INDEX).read_text())
    index["weight_map"]["extra"] = "harmless.bin"
    write_json(tmp_path / INDEX, index)
    (tmp_path / "harmless.bin").touch()
    problem = only(tmp_path)
    assert problem.code == "pickle-weights"
    assert "harmless.bin" in problem.message


def test_a_truncated_file_is_reported_with_its_bytes(tmp_path: Path) -> None:
    path = write_model(tmp_path) / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    problem = only(tmp_path)
    assert problem.code == "truncated-weights"
    for word in ("model.safetensors", str(len(whole)), str(len(whole) - 100)):
        assert word in problem.message


def test_a_git_lfs_pointer_is_reported(tmp_path: Path) -> None:
    path = write_model(tmp_path) / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 99\n")
    assert only(tmp_path).code == "lfs-pointer"


def test_a_header_that_makes_no_sense_is_reported(tmp_path: Path) -> None:
    (write_model(tmp_path) / "model.safetensors").write_bytes(raw_safetensors(b"PK\3\4 a zip"))
    assert only(tmp_path).code == "bad-header"


def test_missing_shards_are_reported_together(tmp_path: Path) -> None:
    write_sharded(tmp_path, 4)
    for number in (2, 3):
        (tmp_path / f"model-0000{number}-of-00004.safetensors").unlink()
    checkpoint, problems = read(tmp_path)
    assert list(problems) == ["missing-weight-file"]
    assert "model-00002-of-00004.safetensors, model-00003-of-00004" in problems["missing-weight-file"].message
    assert set(checkpoint.tensors) == {"layers.1.weight", "layers.4.weight"}


def test_a_folder_in_place_of_a_shard_is_missing_too(tmp_path: Path) -> None:
    shard = write_sharded(tmp_path, 2) / "model-00001-of-00002.safetensors"
    shard.unlink()
    shard.mkdir()
    assert only(tmp_path).code == "missing-weight-file"


def test_tensors_that_no_shard_holds_are_reported(tmp_path: Path) -> None:
    write_sharded(tmp_path, 2)
    index = json.loads((tmp_path / INDEX).read_text())
    index["weight_map"]["ghost.weight"] = "model-00001-of-00002.safetensors"
    write_json(tmp_path / INDEX, index)
    problem = only(tmp_path)
    assert problem.code == "index-mismatch"
    assert "ghost.weight" in problem.message


def test_the_index_decides_which_of_two_shards_a_tensor_is_in(tmp_path: Path) -> None:
    write_sharded(tmp_path, 2)
    first, second = (tmp_path / f"model-0000{n}-of-00002.safetensors" for n in (1, 2))
    second.write_bytes(first.read_bytes())
    index = {"metadata": {}, "weight_map": {"layers.1.weight": first.name, "layers.2.weight": second.name}}
    write_json(tmp_path / INDEX, index)
    checkpoint, problems = read(tmp_path)
    assert set(problems) == {
        "index-mismatch",
        "tensor-twice",
    }  # which of the two is loaded, the index doesn't decide
    assert checkpoint.tensors["layers.1.weight"].file == first.name


def test_an_index_that_leads_outside_is_refused(tmp_path: Path) -> None:
    write_sharded(tmp_path / "m", 1)
    write_model(tmp_path / "other")
    index = {"metadata": {}, "weight_map": {"x": "../other/model.safetensors"}}
    write_json(tmp_path / "m" / INDEX, index)
    checkpoint, problems = read(tmp_path / "m")
    assert list(problems) == ["path-escape"]
    assert checkpoint.tensors == {}


@pytest.mark.parametrize(
    ("content", "code"), [("{", "bad-json"), ("[]", "config-not-object"), ("{}", "bad-index")]
)
def test_a_bad_index_is_reported(tmp_path: Path, content: str, code: str) -> None:
    (write_sharded(tmp_path) / INDEX).write_text(content)
    problem = only(tmp_path)
    assert problem.code == code
    assert INDEX in problem.message


def test_all_problems_come_together(tmp_path: Path) -> None:
    write_sharded(tmp_path, 3)
    (tmp_path / "generation_config.json").write_text("{")
    (tmp_path / "tokenizer_config.json").write_text("[]")
    (tmp_path / "model-00001-of-00003.safetensors").unlink()
    with (tmp_path / "model-00002-of-00003.safetensors").open("ab") as file:
        file.write(b"x")
    (tmp_path / "model-00003-of-00003.safetensors").write_bytes(b"")
    checkpoint, problems = read(tmp_path)
    assert set(problems) == {
        "bad-json",
        "config-not-object",
        "missing-weight-file",
        "bad-header",
        "truncated-weights",
    }
    assert checkpoint.config == CONFIG


# Adapters


def test_an_adapter_brings_its_base(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base")
    folder = write_adapter(tmp_path / "adapter", str(base))
    checkpoint, problems = read(folder)
    assert problems == {}
    assert (checkpoint.source, checkpoint.location) == (str(folder), str(base))
    assert checkpoint.config == CONFIG
    assert set(checkpoint.tensors) == set(SHAPES)
    adapter = checkpoint.adapter
    assert adapter is not None
    assert (adapter.source, adapter.location, adapter.commit) == (str(folder), str(folder), "")
    assert adapter.config["r"] == 4
    assert adapter.tensors["base_model.model.q_proj.lora_A.weight"].shape == (4, 32)


def test_a_base_path_starts_here_or_at_the_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path / "here" / "base")
    folder = write_adapter(tmp_path / "there" / "adapter", "base")
    beside = write_model(tmp_path / "there" / "adapter" / "base")
    monkeypatch.chdir(tmp_path / "here")
    assert read(folder)[0].location == str(tmp_path / "here" / "base")
    monkeypatch.chdir(tmp_path)
    assert read(folder)[0].location == str(beside)


def test_a_config_beside_an_adapter_does_not_make_it_a_model(tmp_path: Path) -> None:
    """Trainers save the base's config with the adapter."""
    base = write_model(tmp_path / "base")
    folder = write_adapter(tmp_path / "adapter", str(base))
    write_json(folder / "config.json", {"model_type": "stale"})
    checkpoint, problems = read(folder)
    assert problems == {}
    assert checkpoint.location == str(base)
    assert checkpoint.model_type == "mistral"


def test_a_model_with_an_embedded_adapter_is_its_own_base(tmp_path: Path) -> None:
    folder = write_adapter(write_model(tmp_path / "both"), "someone/elsewhere")
    checkpoint, problems = read(folder)
    assert problems == {}
    assert checkpoint.location == str(folder)
    assert checkpoint.tensors
    assert checkpoint.adapter is not None
    assert checkpoint.adapter.location == str(folder)


@pytest.mark.parametrize("named", [None, "", 7])
def test_an_adapter_that_names_no_base_is_reported(tmp_path: Path, named: object) -> None:
    folder = write_adapter(tmp_path, None, base_model_name_or_path=named)
    checkpoint, problems = read(folder)
    assert list(problems) == ["missing-base"]
    assert "names no base" in problems["missing-base"].message
    assert checkpoint.adapter is not None


def test_a_missing_base_is_reported_with_both_names(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter", "/home/someone/llama")
    checkpoint, problems = read(folder)
    assert list(problems) == ["missing-base"]
    assert str(folder) in problems["missing-base"].message
    assert "/home/someone/llama" in problems["missing-base"].message
    assert checkpoint.location == "/home/someone/llama"
    assert checkpoint.adapter is not None


def test_an_adapter_of_an_adapter_is_refused(tmp_path: Path) -> None:
    first = write_adapter(tmp_path / "first", str(tmp_path / "second"))
    write_adapter(tmp_path / "second", str(first))
    problem = only(first)
    assert problem.code == "adapter-of-adapter"
    assert "first" in problem.message
    assert "second" in problem.message


def test_problems_of_adapter_and_base_come_together(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base")
    (base / "model.safetensors").write_bytes(b"")
    folder = write_adapter(tmp_path / "adapter", str(base))
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    assert set(read(folder)[1]) == {"truncated-weights", "pickle-weights"}
    assert set(read(folder, allow_pickle=True)[1]) == {"truncated-weights"}
    (folder / "adapter_model.bin").unlink()
    assert set(read(folder)[1]) == {"truncated-weights", "no-weights"}
    (folder / "adapter_config.json").write_text("{")
    assert set(read(folder)[1]) == {"bad-json", "no-weights"}


@pytest.mark.parametrize("options", [{"revision": "v2"}, {"adapter_revision": "v2"}])
def test_revisions_of_folders_are_refused(tmp_path: Path, options: dict[str, str]) -> None:
    folder = write_adapter(tmp_path / "adapter", str(write_model(tmp_path / "base")))
    problem = only(folder, **options)
    assert problem.code == "no-such-revision"
    assert f"{next(iter(options))} 'v2'" in problem.message
    assert only(tmp_path / "base", adapter_revision="v2").code == "not-an-adapter"
