"""The nearest name, and the first few of many."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadkit.text.suggest import did_you_mean, nearest_name, some_of

NAMES = ("dtype", "device_map", "load_in_4bit")


@pytest.mark.parametrize(
    ("word", "nearest"),
    [("dtpye", "dtype"), ("DTYPE", "dtype"), ("devicemap", "device_map"), ("load_in_8bit", "load_in_4bit"), ("revision", ""), ("", "")],
)  # fmt: skip
def test_the_nearest_name(word: str, nearest: str) -> None:
    assert nearest_name(word, NAMES) == nearest
    assert did_you_mean(word, NAMES) == (f" (did you mean '{nearest}'?)" if nearest else "")


def test_a_beginning_is_hinted_at_and_is_no_slip() -> None:
    assert did_you_mean("Dev", NAMES) == " (did you mean 'device_map'?)"
    assert nearest_name("dev", NAMES) == ""  # who decides by it counts letters
    assert did_you_mean("loa", [*NAMES, "load_in_8bit"]) == ""  # two begin so
    assert did_you_mean("dt", NAMES) == ""


def test_a_name_keeps_its_case() -> None:
    assert nearest_name("mistralforcausallm", ["MistralForCausalLM"]) == "MistralForCausalLM"


def test_how_near_it_must_be_can_be_said() -> None:
    assert nearest_name("dtpye", NAMES, cutoff=0.9) == ""
    assert nearest_name("revision", NAMES, cutoff=0.2) != ""


@given(st.lists(st.text(min_size=1), min_size=1), st.data())
def test_a_name_is_nearest_to_itself(names: list[str], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(names))
    assert nearest_name(name, names).casefold() == name.casefold()


@pytest.mark.parametrize(
    ("count", "text"), [(0, ""), (1, "a"), (5, "a, b, c, d, e"), (6, "a, b, c, d, e and 1 more"), (26, "a, b, c, d, e and 21 more")]
)  # fmt: skip
def test_the_first_few(count: int, text: str) -> None:
    assert some_of(iter("abcdefghijklmnopqrstuvwxyz"[:count])) == text


def test_how_few_can_be_said() -> None:
    assert some_of("abc", limit=1) == "a and 2 more"
