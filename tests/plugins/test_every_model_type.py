"""For every model type of both maps, the plan names the class that transformers itself would resolve."""

from __future__ import annotations

import pytest
from examples import checkpoint, planned

from loadkit import PlanError, PluginManager
from loadkit.facts.library.index import read_library
from loadkit.plugins import pause_gc

REFUSED = {
    "evolla": "transformers maps the type, but its config class maps back under another name (TRAPS 30)",
    "musicgen": "transformers gives the decoder's class the whole config (TRAPS 30)",
    "musicgen_melody": "the same",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "auto_class"),
    [("causal-lm", "AutoModelForCausalLM"), ("image-text-to-text", "AutoModelForImageTextToText")],
)
def test_every_model_type(task: str, auto_class: str) -> None:
    import transformers
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    name = {"causal-lm": "CAUSAL_LM", "image-text-to-text": "IMAGE_TEXT_TO_TEXT"}[task]
    types = getattr(modeling_auto, f"MODEL_FOR_{name}_MAPPING_NAMES")
    mapping = getattr(transformers, auto_class)._model_mapping
    manager = PluginManager(environ={})
    wrong: dict[str, tuple[str, str]] = {}
    for model_type in types:
        config_class = CONFIG_MAPPING[model_type]
        theirs = mapping.get(config_class, None)
        facts = checkpoint({"model_type": model_type}, tensors={})
        try:
            ours = planned(facts, manager=manager, task=task).model_class.model_class
        except PlanError as error:
            ours = f"refused: {[p.code for p in error.problems]}"
            if model_type in REFUSED:
                continue
        expected = theirs[0].__name__ if isinstance(theirs, tuple) else getattr(theirs, "__name__", "")
        if ours != expected:
            wrong[model_type] = (ours, expected)
    assert wrong == {}


@pytest.mark.slow
def test_without_a_task_every_model_type_finds_one_of_its_own() -> None:
    from transformers.models.auto import modeling_auto

    causal = dict(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    vision = dict(modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
    types = [name for name in causal.keys() | vision.keys() if name not in REFUSED]
    with pause_gc():  # all at once: each source file is parsed once, and kept until the last is
        read_library({name: {"model_type": name} for name in types})
    manager = PluginManager(environ={})
    for model_type in types:
        found = planned(checkpoint({"model_type": model_type}, tensors={}), manager=manager).model_class
        assert found.task == ("image-text-to-text" if model_type in vision else "causal-lm"), model_type
