"""Adapters of every kind on tiny bases, and what PEFT itself makes of them in float32."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

Make = Callable[..., Path]


def named_class(folder: Path) -> Any:
    """The class that a checkpoint's config names."""
    return getattr(transformers, json.loads((folder / "config.json").read_text())["architectures"][0])


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """What PEFT warns of is the subject here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture
def adapted(tmp_path: Path) -> Make:
    """A maker of adapters: every trainable number of them is moved at random from where PEFT starts it."""

    def make(
        base: Path, config: Any, *, rows: int = 0, klass: Any = None, name: str = "adapter", **about: Any
    ) -> Path:
        torch.manual_seed(0)
        model = (klass or named_class(base)).from_pretrained(base, dtype=torch.float32, **about)
        if rows:
            model.resize_token_embeddings(rows, mean_resizing=False)
        model = peft.get_peft_model(model, config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.03)
        model.save_pretrained(tmp_path / name)
        return tmp_path / name

    return make


def by_peft(
    adapter: Path, base: Path, *, rows: int = 0, untied: bool = False, klass: Any = None, **about: Any
) -> Any:
    """What PEFT's `merge_and_unload` gives, of base and adapter in float32."""
    model = (klass or named_class(base)).from_pretrained(base, dtype=torch.float32, **about)
    if rows:
        model.resize_token_embeddings(rows, mean_resizing=False)
    if untied:  # as PEFT tells to, or one delta would move both
        head = model.get_output_embeddings()
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
    return peft.PeftModel.from_pretrained(model, adapter).float().merge_and_unload()


def same_as_peft(out: Path, adapter: Path, base: Path, *, klass: Any = None, **about: Any) -> list[str]:
    """The model's tensors that aren't what PEFT gives, rounded to the dtype that they are stored in."""
    wanted = by_peft(adapter, base, klass=klass, **about).state_dict()
    loaded, said = (klass or named_class(out)).from_pretrained(out, output_loading_info=True)
    assert not said["missing_keys"]
    assert not said["unexpected_keys"]
    found = loaded.state_dict()
    assert set(found) == set(wanted)
    return [name for name in found if not torch.equal(found[name], wanted[name].to(found[name].dtype))]


def moved(out: Path, base: Path) -> set[str]:
    """The tensors of the files that aren't the base's, bit for bit."""

    def tensors(folder: Path) -> dict[str, Any]:
        return {n: t for path in sorted(folder.glob("*.safetensors")) for n, t in load_file(path).items()}

    before, after = tensors(base), tensors(out)
    assert set(before) <= set(after)
    same = {n for n in before if before[n].dtype == after[n].dtype and torch.equal(before[n], after[n])}
    return set(after) - same
