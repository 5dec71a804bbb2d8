"""A recipe's YAML: what PyYAML lets pass is noticed, and nothing that a file holds raises."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from loadkit.request.recipes import Recipe, read_recipe

Reported = Callable[[str], dict[str, str]]


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("a: [1\n", "recipe-not-yaml", "line 2, column 1"),
        ("a: 1\nb: 'x\x07'\n", "recipe-not-yaml", "line 2, column 6"),
        ("a: 1\n---\nb: 2\n", "recipe-not-yaml", "another document"),
        ("a: !!python/object/apply:os.system ['true']\n", "recipe-not-yaml", "could not determine a constructor"),
        ("a: !!int ''\n", "recipe-not-yaml", "IndexError"),
        ("a: !!bool perhaps\n", "recipe-not-yaml", "KeyError"),
        ("a: 2026-99-99\n", "recipe-not-yaml", "month"),
        (f"a: {'[' * 5000}\n", "recipe-not-yaml", "RecursionError"),
        ("? [a]\n: b\n", "recipe-not-yaml", "unhashable"),
        ("- a\n", "recipe-not-mapping", "a list"),
        ("", "recipe-not-mapping", "nothing"),
        ("# only a comment\n", "recipe-not-mapping", "nothing"),
        ("on: a\n", "recipe-not-mapping", "the key True"),
        ("dtype: float16\nlora_r: 1\ndtype: bfloat16\n", "recipe-key-twice", "line 3 gives 'dtype' a second time"),
        ("datasets:\n  - {path: a, path: b}\n", "recipe-key-twice", "line 2 gives 'path'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_reported(reported: Reported, text: str, code: str, words: str) -> None:
    assert words in reported(text)[code]


def test_a_file_that_isnt_there(tmp_path: Path) -> None:
    found, problems = read_recipe(tmp_path / "nowhere.yaml")
    assert found is None
    assert [p.code for p in problems] == ["recipe-unreadable"]
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "binary.yaml", tmp_path, "~nobody-of-that-name/recipe.yaml", "a\0b"):
        assert [p.code for p in read_recipe(path)[1]] == ["recipe-unreadable"], path


@pytest.mark.parametrize(
    "text",
    [
        "defs:\n  a: &a {x: 1}\n  b: &b {<<: *a, x: 2}\nouter: {<<: *b}\n",  # a merge that is overridden, merged again
        "a: {'1': x, 1: y}\n",  # a text and a number
        "a: &a {self: *a}\n",
        "\ufeffa: 1\n",
    ],
)
def test_what_is_in_order_is_let_pass(recipe: Callable[[str], Recipe], text: str) -> None:
    assert recipe(text).options == {"training": True}


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60))
def test_no_text_raises(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "text.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    found, problems = read_recipe(path)
    assert (found is None) <= bool(problems)


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.text("xyzwvk_", min_size=3, max_size=12), st.none() | st.booleans() | st.integers() | st.text("ab", max_size=3), max_size=5
    )
)  # fmt: skip
def test_what_isnt_loading_is_the_trainers_untouched(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, Any]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(yaml.safe_dump(content | {"model_name_or_path": "a/b"}), encoding="utf-8")
    found, problems = read_recipe(path)
    assert problems == []
    assert found is not None
    assert found.trainer == content
    assert found.options == {"training": True, "dtype": "float32"}  # TRL's, where none is named


VALUES = (
    None, True, False, 4, 0.5, -1, "", "auto", "lora", "q_proj,v_proj", [], ["a"], ["a", "b"], {}, {"a": 1},
    {"pad_token": "<p>"}, [{"a": 1}],
)  # fmt: skip


@pytest.mark.parametrize(
    "name", ["trl", pytest.param("axolotl", marks=pytest.mark.slow), "llama-factory", "llama-factory-v1"]
)
def test_no_value_of_a_loading_key_raises(name: str) -> None:
    from loadkit.request.recipes.key_tables import dialects
    from loadkit.request.recipes.translate import translate

    dialect = next(d for d in dialects() if d.name == name)
    for key in [dialect.source, *dialect.keys, *dialect.untranslated]:
        for value in VALUES:
            for beside in ({}, {"adapter": "qlora", "use_peft": True, "quantization_bit": 4}):
                found = translate({"do_train": True, **beside, key: value}, dialect)
                assert found.options["training"] is True or key == "peft_config.export_dir"
                assert all(p.remedy for p in found.problems)
