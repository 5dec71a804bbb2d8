"""Options and profiles: checked against declarations, turned into plain values, merged with their origin."""

from __future__ import annotations

import enum
from pathlib import Path

import pytest
from examples import planned, problems

from loadkit.request.options import plain


class Colour(enum.Enum):
    RED = "red"


class Config:
    def to_dict(self) -> dict[str, object]:
        return {"a": {1, 2}, "path": Path("x")}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Colour.RED, "red"),
        (Path("a/b"), "a/b"),
        ({3, 1}, [1, 3]),
        (("a", 1), ["a", 1]),
        ({"k": Colour.RED}, {"k": "red"}),
        (Config(), {"a": [1, 2], "path": "x"}),
        (None, None),
    ],
)
def test_plain_values(value: object, expected: object) -> None:
    assert plain(value) == expected


def test_what_has_no_plain_form() -> None:
    with pytest.raises(TypeError, match=r"builtins\.object"):
        plain(object())


def test_torch_dtypes_are_named() -> None:
    import torch

    assert planned(dtype=torch.float32).dtype == "float32"
    assert planned(torch_dtype=torch.float32).dtype == "float32"
    assert planned(dtype="torch.float16").dtype == "float16"
    assert planned(dtype="bf16").dtype == "bfloat16"


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ({"dtpe": "x"}, "unknown-option", "did you mean 'dtype'?"),
        ({"low_cpu_mem_usage": True}, "unknown-option", "model_kwargs"),
        ({"load_in_4bit": "yes"}, "bad-option", "it takes true or false"),
        ({"lora_r": "many"}, "bad-option", "it takes a whole number"),
        ({"bnb_4bit_quant_type": "nf5", "load_in_4bit": True}, "bad-choice", "nf4"),
        ({"task": "caual-lm"}, "bad-choice", "did you mean 'causal-lm'?"),
        ({"dtype": "float32", "torch_dtype": "float16"}, "option-twice", "torch_dtype"),
        ({"peft_config": object()}, "bad-option", "it takes a mapping"),
    ],
)
def test_bad_options(options: dict[str, object], code: str, words: str) -> None:
    assert words in problems(**options)[code]


def test_none_is_not_given() -> None:
    assert planned(dtype=None, load_in_4bit=None) == planned()


def test_your_option_hides_the_profiles_in_plain_sight() -> None:
    plan = planned(None, "qlora", lora_r=4)
    assert plan.adapter is not None
    assert plan.adapter.options["r"] == 4
    assert "lora_r=4 by you, instead of 16 by profile 'qlora'" in str(plan)


def profile(folder: Path, text: str, name: str = "ours.toml") -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def test_a_profile_file_extends_another(tmp_path: Path) -> None:
    path = profile(tmp_path, 'description = "Ours."\nextends = "qlora"\n[options]\nlora_r = 64\n')
    plan = planned(None, path)
    assert plan.adapter is not None
    assert plan.quantization is not None
    assert plan.adapter.options["r"] == 64
    assert plan.quantization.options["bnb_4bit_quant_type"] == "nf4"


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("description = ", "bad-profile", "TOML"),
        ('description = "x"\nextnds = "qlora"', "bad-profile", "extnds"),
        ('description = "x"\nextends = "qloar"', "unknown-profile", "did you mean 'qlora'?"),
        ('description = "x"\n[options]\ndtpe = "x"', "unknown-option", "profile"),
        ('description = "x"\nextends = "PATH"', "profile-loop", "leads back"),
    ],
)
def test_bad_profile_files(tmp_path: Path, text: str, code: str, words: str) -> None:
    path = tmp_path / "ours.toml"
    reported = problems(None, profile(tmp_path, text.replace("PATH", path.as_posix())))
    assert words in reported[code]


def test_a_profile_file_that_isnt_there(tmp_path: Path) -> None:
    assert "ours.toml" in problems(None, str(tmp_path / "ours.toml"))["bad-profile"]
