"""What a newcomer's mistakes are answered with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import loadkit

Tiny = Callable[..., Path]


def refused(*given: Any, **options: Any) -> list[loadkit.Problem]:
    with pytest.raises(loadkit.PlanError) as caught:
        loadkit.plan(*given, **options)
    return list(caught.value.problems)


@pytest.mark.parametrize(
    "name", ["x.gguf", "sub/model.safetensors", "owner/pytorch_model.bin", "model.Q4.GGUF"]
)
def test_a_path_of_weights_is_no_hub_id(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (problem,) = refused(name)
    assert problem.code == "no-such-folder"
    assert f"there is no file {str(tmp_path / name)!r}" in problem.message
    near = tmp_path / f"{name[:-1]}"
    near.parent.mkdir(exist_ok=True)
    near.with_name(f"a{Path(name).name}").write_bytes(b"")
    assert "did you mean" in refused(name)[0].remedy


def test_a_typo_beside_a_real_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    (tmp_path / "my-mistral").mkdir()
    (problem,) = refused("my-mistrl", local_files_only=True)
    assert problem.code == "offline-not-cached"
    assert f"did you mean {str(tmp_path / 'my-mistral')!r}?" in problem.remedy
    assert "hf auth login" in problem.remedy
    assert "did you mean" not in refused("quite-another", local_files_only=True)[0].remedy


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("./my-mistrl", "my-mistral"),
        ("./my-modl.gguf", "my-model.gguf"),
        ("./my-model.ggu", "my-model.gguf"),
        ("./my-mistral/model.safetensor", "my-mistral"),  # files of a checkpoint are loaded as one
        ("./my-mistral/model-00001-of-00002.safetensors", "my-mistral"),
        ("./depp/er/my-mistral", "deep/er/my-mistral"),  # a folder above it is misspelt
        ("./deep/e/my-mistrl", "deep/er/my-mistral"),
        ("./quite/another", ""),
        ("./my-mistral/tokenizer", ""),
    ],
)
def test_a_path_of_nothing_is_put_right(
    given: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("my-mistral", "deep/er/my-mistral"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "config.json").write_text("{}")
        (tmp_path / folder / "model.safetensors").touch()
    (tmp_path / "my-model.gguf").touch()
    (problem,) = refused(given)
    assert problem.code == "no-such-folder"
    if meant:
        assert f"did you mean {str(tmp_path / meant)!r}?" in problem.remedy
    else:
        assert "did you mean" not in problem.remedy


def test_a_hub_id_isnt_taken_for_a_folder_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    (tmp_path / "my-llama").mkdir()
    (tmp_path / "my-llama" / "config.json").write_text("{}")
    assert "did you mean" not in refused("meta-llama/Llama-3.1-8B", local_files_only=True)[0].remedy


@pytest.mark.parametrize("given", [["a"], 5, b"a", {"a": 1}, object(), 2.5, True])
def test_what_is_no_name_is_no_source(given: object) -> None:
    (problem,) = refused(given)
    assert problem.code == "no-source"
    assert "as the source" in problem.message


def test_a_profile_with_an_ending_and_one_misspelt(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "ours.toml").write_text('description = "Ours."\n')
    for given, meant in (
        ("qlora.toml", "qlora"),
        (str(tmp_path / "our.toml"), str(tmp_path / "ours.toml")),
        (str(tmp_path / "qlra.toml"), "qlora"),
    ):
        (problem,) = refused(tiny("mistral"), given)
        assert f"did you mean {meant!r}?" in problem.message


def test_the_entry_of_a_mapping_that_doesnt_fit_is_named(tiny: Tiny) -> None:
    (problem,) = refused(tiny("mistral"), max_memory={0: "10GB", "cpu": 3.5})
    assert "where 'cpu' has 3.5, a number; it takes a mapping of devices to sizes" in problem.message


@pytest.mark.parametrize(
    ("given", "meant"), [("bfloat", "bfloat16"), ("bflaot16", "bfloat16"), ("float3", "float32")]
)
def test_a_dtype_that_is_nearly_one(given: str, meant: str, tiny: Tiny) -> None:
    assert f"did you mean {meant!r}?" in refused(tiny("mistral"), dtype=given)[0].message


@pytest.mark.parametrize(
    ("name", "option"),
    [("r", "lora_r"), ("target_modules", "lora_target_modules"), ("quant_type", "bnb_4bit_quant_type")],
)
def test_names_of_other_libraries_are_hinted(name: str, option: str, tiny: Tiny) -> None:
    (problem,) = refused(tiny("mistral"), **{name: 8})
    assert f"did you mean {option!r}?" in problem.message
    assert ("in adapter=" in problem.remedy) == option.startswith("lora_")


def test_types_are_told_in_words(tiny: Tiny) -> None:
    found = refused(tiny("mistral"), lora_r=[1], gradient_checkpointing=7)
    said = " ".join(problem.message for problem in found)
    assert "lora_r=[1], a list; it takes a whole number" in said
    assert "gradient_checkpointing=7, a whole number; it takes true or false" in said


def test_a_dict_is_no_profile(tiny: Tiny) -> None:
    (problem,) = refused(tiny("mistral"), {"lora_r": 3})
    assert problem.code == "bad-profile"
    assert "lora_r=…" in problem.remedy


def test_a_profile_may_be_a_path(tiny: Tiny, tmp_path: Path) -> None:
    file = tmp_path / "ours.toml"
    file.write_text('description = "Ours."\nextends = "lora"\n[options]\nlora_r = 3\n')
    plan = loadkit.plan(tiny("mistral"), file)  # type: ignore[arg-type]
    assert plan.adapter is not None
    assert plan.adapter.options["r"] == 3
    assert loadkit.Plan.from_json(plan.to_json()) == plan


def test_all_faults_of_a_profile_file_come_together(tiny: Tiny, tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    file.write_text('descripton = "x"\nextends = "qlra"\nlora_r = 3\n[options]\nlora_rr = 2\ndtype = 3\n')
    found = [(problem.code, problem.message) for problem in refused(tiny("mistral"), str(file))]
    assert [code for code, _ in found].count("bad-profile") == 3
    assert {code for code, _ in found} == {"bad-profile", "unknown-profile", "unknown-option", "bad-option"}
    assert any("did you mean 'description'?" in message for _, message in found)
