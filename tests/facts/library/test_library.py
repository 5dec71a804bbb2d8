"""`read_library` against the transformers that is installed."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from loadkit.facts.library import index as library_index
from loadkit.facts.library.index import read_library
from loadkit.facts.library.library import ConfigFacts, Library, ModelFacts

QUICK = (
    "mistral",  # the plain case
    "gpt2",  # shares its config class
    "gpt-sw3",  # with this, whose own folder has neither config nor models
    "gemma3",  # a fixed and a free sub-config, in both maps
    "llava",  # free sub-configs only
    "mllama",  # fixed sub-configs, two levels of inheritance
    "qwen2_5_vl",  # flags inherited from another model's module
    "dbrx",  # the older sub_configs, parts without a model type
    "evolla",  # in the map, and refused
    "internlm3",  # llama's classes under its own name
    "glmga",  # the same in the vision map
    "moonshine_streaming_encoder",  # non-scalar defaults
)

NO_DEFAULT_CONFIG = {
    "gemma4_assistant": "its defaults fail its own validation",
    "nougat": "its encoder defaults to donut_swin, which transformers spells donut-swin",
}
UNRESOLVED = {
    ("AutoModel", "voxtral_realtime_text"): "transformers forgets to export the class that its map names"
}
NOT_LITERAL = {
    "embed_init_std": "a power",
    "norm_mean": "a named constant",
    "norm_std": "a named constant",
    "time_step_limit": "holds infinity, which JSON lacks",
}

AUTO_CLASSES = ("AutoModelForCausalLM", "AutoModelForImageTextToText")


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("library-cache")


@pytest.fixture(autouse=True)
def _fresh_memory() -> Iterator[None]:
    library_index._memory.clear()
    yield
    library_index._memory.clear()


@pytest.fixture(scope="module")
def auto() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers.models.auto import modeling_auto
    return modeling_auto


def test_maps_are_transformers_own(auto: Any, shared_cache: Path) -> None:
    from transformers import __version__
    from transformers.models.auto import configuration_auto, image_processing_auto, processing_auto

    library = read_library(None, cache_dir=shared_cache)

    assert library.version == __version__
    assert library.families == {}
    assert list(library.config_classes.items()) == list(configuration_auto.CONFIG_MAPPING_NAMES.items())
    for model_type, module in library.modules.items():
        assert module == configuration_auto.model_type_to_module_name(model_type)
    assert set(library.auto_classes) == {
        name
        for name in dir(auto)
        if name.startswith("Auto") and getattr(auto, name)._model_mapping is not None
    }
    for name, mapping in library.auto_classes.items():
        real = getattr(auto, name)._model_mapping._model_mapping
        assert mapping == {
            key: (value,) if isinstance(value, str) else tuple(value) for key, value in real.items()
        }
    processors = processing_auto.PROCESSOR_MAPPING_NAMES.items()
    assert library.processor_classes == {key: (value,) for key, value in processors if value}
    images = image_processing_auto.IMAGE_PROCESSOR_MAPPING_NAMES.items()
    assert {key: set(names) for key, names in library.image_processor_classes.items()} == {
        key: {name for name in names.values() if name} for key, names in images
    }
    assert library.image_processor_classes["aria"] == ("AriaImageProcessor", "AriaImageProcessorPil")


def test_tokenizers_are_taken_as_installed(auto: Any, shared_cache: Path) -> None:
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

    library = read_library(None, cache_dir=shared_cache)

    assert set(library.tokenizer_classes) == set(TOKENIZER_MAPPING_NAMES)
    for key, names in library.tokenizer_classes.items():
        assert TOKENIZER_MAPPING_NAMES[key] in (*names, None)
    assert library.tokenizer_classes["gemma3"] == ("GemmaTokenizer",)
    assert library.tokenizer_classes["mistral"] == ("MistralCommonBackend", "TokenizersBackend")


@pytest.mark.parametrize("model_type", QUICK)
def test_model_type_is_what_transformers_says(model_type: str, auto: Any, shared_cache: Path) -> None:
    assert differences(model_type, AUTO_CLASSES, auto, shared_cache) == []


@pytest.mark.parametrize("model_type", NO_DEFAULT_CONFIG)
def test_types_without_a_default_config_still_have_none(
    model_type: str, auto: Any, shared_cache: Path
) -> None:
    from huggingface_hub.errors import StrictDataclassError
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    assert differences(model_type, (), auto, shared_cache) == []
    with pytest.raises((ValueError, StrictDataclassError)):
        CONFIG_MAPPING[model_type]()


@pytest.mark.parametrize(("auto_class", "model_type"), UNRESOLVED)
def test_classes_that_transformers_cant_find_are_still_lost(
    auto_class: str, model_type: str, auto: Any
) -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    with pytest.raises(ValueError, match="Could not find"):
        _real_class(getattr(auto, auto_class), CONFIG_MAPPING[model_type](), ())


@pytest.mark.slow
def test_every_model_type_is_what_transformers_says(auto: Any, shared_cache: Path) -> None:
    library = read_library(None, cache_dir=shared_cache)
    found = {
        model_type: wrong
        for model_type in library.config_classes
        if (wrong := differences(model_type, tuple(library.auto_classes), auto, shared_cache))
    }
    assert found == {}


def differences(model_type: str, auto_classes: tuple[str, ...], auto: Any, cache: Path) -> list[str]:
    """In words, where the facts of a model type aren't what importing its classes shows."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config_class = CONFIG_MAPPING[model_type]
    default = None if model_type in NO_DEFAULT_CONFIG else config_class()
    library = read_library(_saved(model_type, default), cache_dir=cache)
    family = library.families.get(model_type)
    if family is None:
        return ["no family"]
    found = list(_config_differences(family.config, config_class))
    if default is None:
        return found
    found += _level_differences(library, family.config, default, "")
    for auto_class in auto_classes:
        classes = library.auto_classes[auto_class].get(model_type, ())
        for architectures in [(), *([name] for name in classes if len(classes) > 1)]:
            if (auto_class, model_type) in UNRESOLVED:
                continue
            real = _real_class(getattr(auto, auto_class), config_class(), architectures)
            ours = library.model_class(auto_class, model_type, architectures)
            if ours != (real.__name__ if real else None):
                found.append(f"{auto_class}{architectures}: {ours} instead of {real}")
            elif (
                real is not None and type(real).__name__ != "DummyObject"
            ):  # a stand-in: its package is missing
                found += _model_differences(library.class_facts(ours or ""), real)
    return found


def _saved(model_type: str, default: Any) -> dict[str, Any]:
    """What config.json holds for a default config."""
    if default is None:
        return {"model_type": model_type}
    return {**json.loads(default.to_json_string(use_diff=False)), "model_type": model_type}


def _real_class(auto_class: Any, config: Any, architectures: Any) -> Any:
    """What the auto class's from_pretrained does with a config: refuse a foreign one, else choose."""
    from transformers.models.auto.auto_factory import _get_model_class

    config.architectures = list(architectures)
    mapping = auto_class._model_mapping
    return _get_model_class(config, mapping) if type(config) in mapping else None


def _model_differences(facts: ModelFacts | None, real: Any) -> Iterator[str]:
    if facts is None:
        yield f"{real.__name__}: no facts"
        return
    expected = {
        "module": real.__module__,
        "supports_sdpa": real._supports_sdpa,
        "supports_flash_attn": real._supports_flash_attn,
        "supports_flex_attn": real._supports_flex_attn,
        "supports_attention_backend": real._supports_attention_backend,
        "supports_gradient_checkpointing": real.supports_gradient_checkpointing,
        "config_class": real.config_class and getattr(real.config_class, "__name__", str(real.config_class)),
        "no_split_modules": tuple(real._no_split_modules or ()),
        "keep_in_fp32_modules": tuple(real._keep_in_fp32_modules or ()),
        "keep_in_fp32_modules_strict": tuple(real._keep_in_fp32_modules_strict or ()),
        "compatible_flash_implementations": tuple(real._compatible_flash_implementations or ()),
    }
    for name, value in expected.items():
        if getattr(facts, name) != value:
            yield f"{real.__name__}.{name}: {getattr(facts, name)} instead of {value}"


def _config_differences(facts: ConfigFacts, real: Any) -> Iterator[str]:
    defaults = real.sub_configs_defaults
    types = {
        key: defaults[key].model_type if key in defaults else c.model_type
        for key, c in real.sub_configs.items()
    }
    expected = {
        "name": real.__name__,
        "module": real.__module__,
        "model_type": real.model_type,
        "sub_configs": types,
        "sub_config_classes": {key: each.__name__ for key, each in real.sub_configs.items()},
        "attribute_map": dict(real.attribute_map),
    }
    for name, value in expected.items():
        if getattr(facts, name) != value:
            yield f"{real.__name__}.{name}: {getattr(facts, name)} instead of {value}"
    fields = {field.name: field.default for field in dataclasses.fields(real)}
    if set(facts.fields) != set(fields):
        yield f"{real.__name__}: fields {set(facts.fields) ^ set(fields)}"
    for name, value in facts.fields.items():
        default = fields.get(name)
        plain = None if default is dataclasses.MISSING else msgspec.to_builtins(default, enc_hook=str)
        plain = list(plain) if isinstance(plain, tuple) else plain
        if name not in NOT_LITERAL and json.dumps(value) != json.dumps(plain):
            yield f"{real.__name__}.{name}: {value!r} instead of {default!r}"


def _level_differences(library: Library, facts: ConfigFacts | None, real: Any, path: str) -> Iterator[str]:
    """A default config and all that is nested in it: the right class, and `use_cache` where it has one."""
    if facts is None or facts.name != type(real).__name__:
        yield f"{path or 'top'}: {facts and facts.name} instead of {type(real).__name__}"
        return
    if facts.has_use_cache != hasattr(real, "use_cache"):
        yield f"{path or 'top'}: has_use_cache is {facts.has_use_cache}"
    for key in type(real).sub_configs:
        nested = getattr(real, key, None)
        if nested is not None:
            yield from _level_differences(
                library, library.sub_config(facts, key, nested.model_type), nested, f"{path}.{key}"
            )


def test_nested_configs_may_be_named_by_the_checkpoint(shared_cache: Path) -> None:
    config = {"model_type": "llava", "text_config": {"model_type": "mistral"}, "vision_config": {}}

    library = read_library(config, cache_dir=shared_cache)

    assert set(library.families) == {"llava", "llama", "clip_vision_model", "mistral"}
    llava = library.families["llava"].config
    assert library.text_class("llava") == ("LlamaForCausalLM", "text_config")
    assert library.text_class("llava", config) == ("MistralForCausalLM", "text_config")
    found = library.sub_config(llava, "text_config", "mistral")
    assert found is not None
    assert found.name == "MistralConfig"
    assert library.sub_config(llava, "audio_config") is None
    assert library.class_facts("MistralForCausalLM") is not None
    assert library.class_facts("GemmaForCausalLM") is None
    assert library.config_facts("LlamaConfig") == library.families["llama"].config
    assert library.config_facts("GemmaConfig") is None


def test_types_named_at_any_depth_are_read(shared_cache: Path) -> None:
    config = {"model_type": "mistral", "outer_config": {"inner_config": {"model_type": "llama"}}}
    assert set(read_library(config, cache_dir=shared_cache).families) == {"mistral", "llama"}


def test_parts_without_a_model_type_are_found_by_class(shared_cache: Path) -> None:
    library = read_library({"model_type": "dbrx"}, cache_dir=shared_cache)

    dbrx = library.families["dbrx"].config
    assert dbrx.sub_configs == {"attn_config": "", "ffn_config": ""}
    found = library.sub_config(dbrx, "attn_config")
    assert found is not None
    assert found.name == "DbrxAttentionConfig"


@pytest.mark.parametrize(
    ("model_type", "expected"),
    [
        ("gemma3", ("Gemma3ForCausalLM", "text_config")),
        ("florence2", None),  # its text part is an encoder-decoder
        ("qwen2_5_vl", None),  # its text part has no causal language model of its own
        ("mistral", None),  # no part at all
        ("no-such-type", None),
    ],
)
def test_text_class(model_type: str, expected: tuple[str, str] | None, shared_cache: Path) -> None:
    library = read_library({"model_type": model_type}, cache_dir=shared_cache)
    assert library.text_class(model_type) == expected


def test_model_class_refuses_what_transformers_refuses(shared_cache: Path) -> None:
    library = read_library(None, cache_dir=shared_cache)

    assert "evolla" in library.auto_classes["AutoModelForImageTextToText"]
    assert library.model_class("AutoModelForImageTextToText", "evolla") is None
    assert library.model_class("AutoModelForCausalLM", "no-such-type") is None
    assert library.model_class("AutoModelForNothing", "mistral") is None
    assert library.model_class("AutoModelForCausalLM", "gpt-sw3") == "GPT2LMHeadModel"
    assert library.model_class("AutoModel", "funnel", ["Other", "FunnelBaseModel"]) == "FunnelBaseModel"
    assert library.model_class("AutoModel", "funnel", ["Other"]) == "FunnelModel"


@pytest.mark.parametrize(
    "config", [{"model_type": "mistral"}, {"model_type": "mistral", "layer_types": []}, {}]
)
def test_model_type_of_is_autoconfigs(config: Mapping[str, Any], tmp_path: Path, shared_cache: Path) -> None:
    from transformers import AutoConfig

    library = read_library(config, cache_dir=shared_cache)
    ours = library.model_type_of(config)

    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 0}))
    if config:
        assert ours == AutoConfig.from_pretrained(tmp_path).model_type
        assert ours in library.families
    else:
        assert ours == ""
        assert library.families == {}


def test_nearest_model_type(shared_cache: Path) -> None:
    library = read_library(None, cache_dir=shared_cache)

    assert library.knows("mistral")
    assert not library.knows("mistrall")
    assert library.nearest("mistrall") == "mistral"
    assert library.nearest("%%%%") is None
