"""Which parts of a model are towers: the source says what is loaded, for every model type of the zoo."""

from __future__ import annotations

import json
import math
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from zoo.expected import NEEDS, model_types

from loadkit import ModelClass
from loadkit.facts.library.index import read_library
from loadkit.facts.library.towers import Towers, read_towers
from loadkit.plugins import towers

pytestmark = pytest.mark.filterwarnings("ignore")

SAMPLE = (
    "aya_vision", "blip-2", "chameleon", "deepseek_vl_hybrid", "gemma3", "git", "glmga", "granite4_vision", "idefics",
    "idefics2", "internvl", "janus", "llama4", "llava", "mistral", "mllama", "paligemma", "phi4_multimodal", "qwen2_5_vl",
    "qwen2_vl", "smolvlm", "t5gemma2", "video_llava", "vision-encoder-decoder",
)  # fmt: skip

NOT_MADE = ("evolla", "gemma4_assistant", "gemma4_unified_assistant", "musicgen", "musicgen_melody")
"""Model types that no Auto class makes: see tests/zoo/expected.toml."""

RENAMED = {
    "cosmos3_omni": "its files hold the tower's layers and the language model's at the top",
    "deepseek_ocr2": "its files call one half of the tower qwen2_model",
}
"""Model types of whose files neither the source nor a name tells all that is a tower's."""


def types(sample: tuple[str, ...]) -> list[Any]:
    """All of them, the slow run's marked."""
    all_ = [t for t in model_types() if t not in NOT_MADE]
    return [pytest.param(t, marks=() if t in sample else pytest.mark.slow) for t in all_]


def made(model_type: str, device: str) -> tuple[Any, Towers]:
    """A tiny model, and where the facts say that its towers are."""
    if model_type in NEEDS and find_spec(NEEDS[model_type]) is None:
        pytest.skip(f"{model_type} needs {NEEDS[model_type]}")
    import torch
    import transformers
    from zoo.shrinking import tiny_config

    task = model_types()[model_type]
    auto = {"causal-lm": "AutoModelForCausalLM", "image-text-to-text": "AutoModelForImageTextToText"}[task]
    with torch.device(device):
        model = getattr(transformers, auto).from_config(tiny_config(model_type))
    config = json.loads(model.config.to_json_string())
    chosen = ModelClass(task=task, auto_class=auto, model_class=type(model).__name__)
    return model, read_towers(read_library(config), config, chosen)


@pytest.mark.parametrize("model_type", types(SAMPLE))
def test_the_source_tells_what_is_loaded(model_type: str) -> None:
    model, facts = made(model_type, "meta")
    paths = {re.sub(r"\.\d+(?=\.|$)", ".*", name) for name, _ in model.named_modules()}
    loaded = {re.sub(r"\.\d+(?=\.|$)", ".*", name) for name in towers(model)}
    outermost = {path for path in loaded if not any(path.startswith(f"{other}.") for other in loaded)}
    assert facts.known
    assert {path for path in facts.paths if path in paths} == outermost  # a config may leave a part out
    below = tuple(f"{path}." for path in outermost)
    assert {p for p in paths if facts.holds(p)} == {p for p in paths if f"{p}.".startswith(below)}


@pytest.mark.parametrize(
    "model_type", types(("idefics2", "llava", "phi4_multimodal", "qwen2_vl", "video_llava"))
)
def test_files_may_spell_it_otherwise(model_type: str, tmp_path: Path) -> None:
    """As many values of the files as of the model."""
    from safetensors import safe_open

    model, facts = made(model_type, "cpu")
    within = tuple(f"{name}." for name in towers(model))
    model.save_pretrained(tmp_path)
    shapes: dict[str, list[int]] = {}
    for path in tmp_path.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            shapes |= {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    held = sum(math.prod(shape) for name, shape in shapes.items() if facts.holds(name.rpartition(".")[0]))
    loaded = sum(tensor.numel() for name, tensor in model.state_dict().items() if name.startswith(within))
    assert (held == loaded) == (model_type not in RENAMED), (held, loaded)
