"""While weights are loaded, transformers' bar counts their bytes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import loadkit
from loadkit.loading.byte_bar import bar_of_bytes, sizes_in

Tiny = Callable[..., Path]


class Bar:
    """What tqdm was asked for, and how far it went."""

    made: list[Bar] = []  # noqa: RUF012

    def __init__(self, iterable: Any = None, **about: Any) -> None:
        self.iterable, self.about, self.done = iterable, about, 0
        self.made.append(self)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.iterable)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: Any) -> None: ...

    def update(self, count: int) -> None:
        self.done += count


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[Bar]:
    from transformers.utils import logging

    monkeypatch.setattr(Bar, "made", [])
    monkeypatch.setattr(logging.tqdm_lib, "tqdm", Bar)
    monkeypatch.setattr(logging, "_tqdm_active", True)
    return Bar.made


@pytest.mark.parametrize("profile", ["inference", "qlora"])
@pytest.mark.parametrize("arch", ["mistral", "gemma3"])
def test_the_bar_ends_at_the_bytes_of_the_files(arch: str, profile: str, tiny: Tiny, bars: list[Bar]) -> None:
    source = tiny(arch)
    loadkit.load(source, profile)
    (bar,) = (bar for bar in bars if bar.about.get("desc") == "Loading weights")
    assert bar.about["unit"] == "B"
    assert bar.done == bar.about["total"]
    assert bar.done == sum(sizes_in(sorted(source.glob("*.safetensors"))).values())


def test_what_is_no_load_of_weights_keeps_its_bar(tiny: Tiny, bars: list[Bar]) -> None:
    from transformers.utils import logging

    with bar_of_bytes(sorted(tiny("mistral").glob("*.safetensors"))):
        assert list(logging.tqdm([1, 2], desc="Another")) == [1, 2]
        assert list(logging.tqdm({"unheard.of": 3}.items(), desc="Loading weights")) == [("unheard.of", 3)]
    assert [bar.about.get("total") for bar in bars] == [None, None]


def test_another_hook_is_asked_as_before(tiny: Tiny, bars: list[Bar]) -> None:
    from transformers.utils import logging

    def own(factory: Any, args: Any, kwargs: Any) -> Any:
        return factory(*args, **kwargs, mine=True)

    before = logging.set_tqdm_hook(own)
    try:
        with bar_of_bytes(sorted(tiny("mistral").glob("*.safetensors"))):
            list(logging.tqdm([1], desc="Another"))
        assert bars[0].about["mine"]
        assert logging.set_tqdm_hook(own) is own
    finally:
        logging.set_tqdm_hook(before)


def test_files_that_tell_no_sizes_are_no_matter(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"x")
    (tmp_path / "b.safetensors").write_bytes(b"short")
    assert sizes_in(sorted(tmp_path.iterdir())) == {}


def test_it_is_read_in_a_terminal(tiny: Tiny, capfd: pytest.CaptureFixture[str]) -> None:
    loadkit.load(tiny("mistral"), "inference")
    assert re.search(r"Loading weights: 100%\S* [\d.]+k/[\d.]+k ", capfd.readouterr().err)
