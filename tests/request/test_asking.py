"""One option at a time: what it may be, in which words it is refused, and whose the problem is."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import msgspec
import pytest

from loadkit import Option, Problem, Strength
from loadkit.request.options import CORE_OPTIONS, SKIPPING, TYPES, ask, plain
from loadkit.schema.request import Asked
from loadkit.text.kinds import kinds_text

SIZE = Option(name="size", type="int", stage="s", help="how much", aliases=("old_size",))
KIND = Option(name="kind", type="str", stage="k", help="which", choices=("small", "large"))
DECLARED = {"size": ("p", SIZE), "old_size": ("p", SIZE), "kind": ("q", KIND)}


def asked(
    given: Mapping[str, object], conflicts: Mapping[str, tuple[str, ...]] | None = None
) -> tuple[dict[str, Asked], list[Problem]]:
    return ask(given, DECLARED, conflicts or {}, by="you", strength=Strength.YOU)


def test_what_is_well_formed_is_kept_under_its_own_name() -> None:
    expected = {
        "size": Asked(name="size", value=3, by="profile 'x'", strength=Strength.PROFILE),
        "kind": Asked(name="kind", value="large", by="profile 'x'", strength=Strength.PROFILE),
    }
    given = {"old_size": 3, "kind": "large"}
    assert ask(given, DECLARED, {}, by="profile 'x'", strength=Strength.PROFILE) == (expected, [])


def test_the_same_value_under_two_names_is_no_problem() -> None:
    found, problems = asked({"size": 3, "old_size": 3})
    assert (found["size"].value, problems) == (3, [])


REFUSED: dict[str, tuple[dict[str, object], tuple[str, ...]]] = {
    "twice": (
        {"size": 3, "old_size": 4},
        (
            "s",
            "p",
            "option-twice",
            "you gave 'size' twice under two names, with 3 and with 4 (old_size)",
            "keep size=3 or size=4",
        ),
    ),
    "another type": (
        {"old_size": "3"},
        (
            "s",
            "p",
            "bad-option",
            "you gave old_size='3', a text; it takes a whole number",
            "old_size: how much",
        ),
    ),
    "no choice": (
        {"kind": "smal"},
        (
            "k",
            "q",
            "bad-choice",
            "you gave kind='smal' (did you mean 'small'?)",
            "choose one of small, large",
        ),
    ),
    "unknown": (
        {"siez": 3},
        (
            "request",
            "loadkit",
            "unknown-option",
            "you gave 'siez', which isn't an option (did you mean 'size'?)",
            "`loadkit plan --help` lists the options; pass anything else that from_pretrained takes in model_kwargs",
        ),
    ),
    "of several plugins": (
        {"shared": 3},
        (
            "request",
            "loadkit",
            "conflict",
            "you gave 'shared', which several plugins declare as theirs: a, b, c",
            "leave all but one out, for example LOADKIT_DISABLE=b,c",
        ),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_refused_in_these_words(name: str) -> None:
    given, words = REFUSED[name]
    found, problems = asked({**given, "kind": given.get("kind", "small")}, {"shared": ("a", "b", "c")})
    assert problems == [Problem(*words)]
    assert found.keys() <= {"kind", "size"}
    assert name == "no choice" or found["kind"].value == "small"  # the others are still taken


def test_none_is_nothing_but_its_name_is_still_looked_at() -> None:
    assert asked({"size": None, "kind": None}) == ({}, [])
    assert [p.code for p in asked({"siez": None})[1]] == ["unknown-option"]


@pytest.mark.parametrize(
    ("kind", "fits", "others"),
    [
        ("bool", [True], [1, "true"]),
        ("float", [0.5, 1], ["1", True]),
        ("int", [1], [1.5, "1", True]),
        ("list", [["a"], []], ["a", [1]]),
        ("mapping", [{"a": 1}, {}], ["a", ["a"]]),
        ("str", ["a", ""], [1, ["a"]]),
        ("bool or mapping", [True, {"a": 1}], ["a", 1]),
        ("bool or str", [True, "a"], [1, {}]),
        ("list or str", [["a"], "a"], [[1], {}]),
        ("mapping or str", [{"a": 1}, "a"], [True, []]),
        ("names or str", [{"a": "b"}, "a"], [{"a": 1}, True]),
        ("places or str", [{"a": 1, "b": "cpu"}, "a"], [{"a": 1.5}, 1]),
        ("sizes", [{"0": 1, "cpu": "1GiB"}], ["a", {"0": 1.5}]),
        ("bool or mapping or str", [True, {"a": 1}, "a"], [1, []]),
    ],
)
def test_every_type_takes_what_it_says_and_nothing_else(
    kind: str, fits: list[object], others: list[object]
) -> None:
    declared = {"o": ("p", Option(name="o", type=kind, stage="s", help="h"))}
    for value in fits:
        assert ask({"o": value}, declared, {}, by="you", strength=Strength.YOU)[1] == []
    for value in others:
        (problem,) = ask({"o": value}, declared, {}, by="you", strength=Strength.YOU)[1]
        assert problem.message.endswith(f"it takes {kinds_text(kind)}")


def test_the_cores_own_options() -> None:
    """Names are an interface: recipes, profiles and scripts spell them."""
    assert {(o.name, o.type, o.stage, *o.aliases) for o in CORE_OPTIONS} == {
        ("revision", "str", "checkpoint"),
        ("adapter_revision", "str", "checkpoint"),
        ("trust_remote_code", "bool", "architecture"),
        ("allow_pickle", "bool", "checkpoint"),
        ("gguf_file", "str", "checkpoint"),
        ("optim", "str", "memory"),
        ("trainer_fields", "list", "request"),
        ("check_memory", "bool", "memory"),
        ("tp_plan", "mapping or str", "engine"),
        ("tp_size", "int", "engine"),
        ("cache_dir", "str", "checkpoint"),
        ("local_files_only", "bool", "checkpoint"),
        ("tokenizer", "str", "processing", "tokenizer_name_or_path"),
        ("chat_template", "str", "processing"),
        ("adapter", "bool or mapping or str", "adapter"),
        ("quantization_config", "mapping", "quantization"),
        ("skip_modules", "list", "quantization", "llm_int8_skip_modules", "modules_to_not_convert"),
        ("model_kwargs", "mapping", "kwargs"),
    }
    assert {o.type for o in CORE_OPTIONS} <= TYPES.keys()
    assert SKIPPING == ("skip_modules", "llm_int8_skip_modules", "modules_to_not_convert")


# --- Plain values ----------------------------


class Text(str):
    __slots__ = ()


class Named(str, enum.Enum):
    ONE = "one"


class Place(enum.Enum):
    HERE = PurePosixPath("a/b")


class Pair(msgspec.Struct):
    left: int
    right: str = "b"


class Config:
    def to_dict(self) -> dict[str, object]:
        return {"inner": Named.ONE}


class Lying:
    to_dict = "no method"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, True),
        (1.5, 1.5),
        (Text("a"), "a"),
        (Named.ONE, "one"),
        (PurePosixPath("a/b"), "a/b"),
        ({1: {"b": (1, 2)}}, {"1": {"b": [1, 2]}}),
        ({3, "a", 10}, [10, 3, "a"]),
        (frozenset({Place.HERE}), ["a/b"]),
        ({Named.ONE: 1}, {"one": 1}),
        (range(2), [0, 1]),
        ([Config()], [{"inner": "one"}]),
        (Pair(1), {"left": 1, "right": "b"}),
    ],
)
def test_plain_to_the_last_level(value: object, expected: object) -> None:
    found = plain(value)
    assert (found, type(found)) == (expected, type(expected))


def torch_class(name: str, text: str) -> Any:
    """What torch has of that name, without importing it."""
    return type(name, (), {"__module__": "torch", "__str__": lambda self: text})()


def test_a_dtype_and_a_device_are_their_names() -> None:
    assert plain(torch_class("dtype", "torch.bfloat16")) == "bfloat16"
    assert plain(torch_class("device", "cuda:1")) == "cuda:1"
    for other in (torch_class("Tensor", "x"), type("dtype", (), {"__module__": "numpy"})()):
        with pytest.raises(TypeError):
            plain(other)


@pytest.mark.parametrize(
    ("value", "name"),
    [(b"a", "builtins.bytes"), (object(), "builtins.object"), (Lying(), f"{__name__}.Lying")],
)
def test_what_has_no_plain_form_is_named(value: object, name: str) -> None:
    with pytest.raises(TypeError) as caught:
        plain({"a": [value]})
    assert str(caught.value) == f"a {name} has no plain form"
