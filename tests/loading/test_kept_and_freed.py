"""A loaded model is an object like any other: it is pickled, copied, and freed with its last reference."""

from __future__ import annotations

import copy
import gc
import io
import json
import pickle
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from forks import Forks

import loadkit

Tiny = Callable[..., Path]
PROFILES = (None, "full", "lora", "inference-4bit", "qlora")

WITHOUT_LOADKIT = """
import sys
sys.modules["loadkit"] = sys.modules["loadkit_plugins"] = None
for name in [n for n in sys.modules if n.startswith(("loadkit.", "loadkit_plugins."))]:
    del sys.modules[name]
import torch
torch.set_grad_enabled(False)
model = torch.load(sys.argv[1], weights_only=False)
print(type(model).__name__, float(model.get_input_embeddings().weight.float().sum()))
model.save_pretrained(sys.argv[2])
"""


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_a_models_wrapper_is_copied_with_it(tiny: Tiny) -> None:
    """What is on the model is found through its wrapper too, and isn't the wrapper's."""
    wrapped = loadkit.load(tiny("mistral"), "lora").model
    assert type(copy.deepcopy(wrapped)) is type(wrapped)
    assert type(copy.copy(wrapped)) is type(wrapped)


def same(one: Any, other: Any) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in one.state_dict().items())


@pytest.mark.parametrize("profile", PROFILES)
def test_it_is_pickled_copied_and_freed(profile: str | None, tiny: Tiny, no_collector: None) -> None:
    loaded = loadkit.load(tiny("mistral"), profile)
    file = io.BytesIO()
    torch.save(loaded.model, file)
    file.seek(0)
    for other in (
        torch.load(file, weights_only=False),
        pickle.loads(pickle.dumps(loaded.model)),
        copy.deepcopy(loaded.model),
    ):
        assert type(other) is type(loaded.model)
        assert same(loaded.model, other)
    if profile in (None, "full", "inference-4bit"):  # PEFT's own model is a cycle
        alive = weakref.ref(loaded.model.get_input_embeddings().weight)
        copied = weakref.ref(other.get_input_embeddings().weight)
        del loaded, other
        assert alive() is None
        assert copied() is None


@pytest.mark.slow
def test_a_saved_model_reads_where_loadkit_is_not(tiny: Tiny, forks: Forks, tmp_path: Path) -> None:
    loaded = loadkit.load(tiny("mistral"), use_cache=False)
    torch.save(loaded.model, tmp_path / "model.pt")
    done = forks.run(WITHOUT_LOADKIT, str(tmp_path / "model.pt"), str(tmp_path / "again"))
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        whole = float(loaded.model.get_input_embeddings().weight.float().sum())
    assert done.stdout.split() == ["MistralForCausalLM", str(whole)]


def test_copies_save_the_own_use_cache_too(tiny: Tiny, tmp_path: Path) -> None:
    loaded = loadkit.load(tiny("mistral"), "full")
    twice = copy.deepcopy(copy.deepcopy(loaded.model))
    assert loaded.model.config.use_cache is twice.config.use_cache is False
    for name, model in {"itself": loaded.model, "copied": twice}.items():
        model.save_pretrained(tmp_path / name)
        assert json.loads((tmp_path / name / "config.json").read_text())["use_cache"] is True
    with torch.no_grad():
        twice.get_input_embeddings().weight.zero_()
    twice.save_pretrained(tmp_path / "changed")
    again = loadkit.load(tmp_path / "changed", allow_weights=[".*"]).model
    assert not again.get_input_embeddings().weight.any()  # it saves itself, not what it was copied from
    assert loaded.model.get_input_embeddings().weight.any()
