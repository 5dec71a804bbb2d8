"""The tables: every option they name is one, every key of the trainers is known, and every misspelling is
noticed."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import loadkit
from loadkit.request.recipes.key_tables import Dialect, dialects, dialects_of
from loadkit.request.recipes.translate import WITHOUT, translate

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TRL = dialects()[0]


def options_of(dialect: Dialect) -> Iterator[tuple[str, str]]:
    for key, meaning in dialect.keys.items():
        fields = [meaning.fields[field] for field in meaning.fields]
        for option in [meaning.option, *fields, *(o for s in meaning.sets.values() for o in s)]:
            yield key, option
    for default in dialect.defaults:
        others = [other for other, _ in default.multiples.values()]
        for option in [default.when, *default.unless, *default.options, *default.multiples, *others]:
            yield "a default", option


@pytest.mark.parametrize("dialect", dialects(), ids=lambda d: d.name)
def test_every_option_is_one(dialect: Dialect) -> None:
    declared = {option.name for _, option in loadkit.PluginManager(environ={}).options.found.values()}
    for key, option in options_of(dialect):
        assert not option or option in declared, (key, option)
    for switch, (_, options) in WITHOUT.items():
        assert {switch, *options} <= declared


@pytest.mark.parametrize("dialect", dialects(), ids=lambda d: d.name)
def test_a_key_is_in_one_place(dialect: Dialect) -> None:
    places = [[dialect.source], dialect.keys, dialect.untranslated, dialect.trainer]
    named = [key for place in places for key in place]
    assert len(named) == len(set(named))
    assert set(dialect.frozen_dtypes) <= set(dialect.trainer)
    for key, meaning in dialect.keys.items():
        sure = meaning.option or meaning.sets or meaning.fields or meaning.without
        assert sure, f"{key} means nothing"
        assert not meaning.only or meaning.sets or meaning.values or meaning.without, key
        assert not (meaning.under or meaning.format or meaning.values) or meaning.option, key
        known = {*dialect.keys, *dialect.trainer, dialect.source}
        assert {each.partition("=")[0] for each in meaning.needs} | set(meaning.against) <= known, key


def test_markers_tell_the_dialects_apart() -> None:
    for dialect in dialects():
        for other in dialects():
            if (
                not {dialect.name, other.name} <= {"llama-factory", "llama-factory-v1"}
                and other is not dialect
            ):
                assert not set(dialect.markers) & {
                    other.source,
                    *other.keys,
                    *other.trainer,
                    *other.untranslated,
                }
        for marker in dialect.markers:
            assert dialects_of({marker: 1}) == [dialect]
    assert dialects_of({"model_name_or_path": "a/b"}) == [TRL]
    shared = {"cutoff_len": 1, "flash_attn": "sdpa", "template": "x"}
    assert dialects_of({**shared, "model": "a/b"})[0].name == "llama-factory-v1"
    assert dialects_of({**shared, "model_name_or_path": "a/b"})[0].name == "llama-factory"
    assert dialects_of({"template": 1, "dataset_name": 1, "use_peft": True}) == [TRL]


@pytest.mark.filterwarnings("ignore")
def test_every_field_of_the_trainers_is_known() -> None:
    """A key of theirs that looks like a loading key would otherwise be taken for a misspelling of it."""
    import transformers
    import trl

    known = {TRL.source, *TRL.keys, *TRL.trainer, *TRL.untranslated}
    classes = [
        c
        for module, ending in ((transformers, "TrainingArguments"), (trl, "Config"), (trl, "Arguments"))
        for name in dir(module)
        if name.endswith(ending) and inspect.isclass(c := getattr(module, name)) and dataclasses.is_dataclass(c)
    ]  # fmt: skip
    assert len(classes) > 5
    trainers: set[str] = set()
    for kind in classes:
        fields = {f.name for f in dataclasses.fields(kind)}
        assert fields <= known, kind.__name__
        trainers |= fields if kind is not trl.ModelConfig else set()
    # What the trainers read as well isn't taken from them. They ignore model_init_kwargs where they are given
    # a model.
    assert {key for key in TRL.keys if key in trainers} - {"model_init_kwargs"} == {
        key for key, meaning in TRL.keys.items() if meaning.shared
    } - {"chat_template", "padding_side", "additional_special_tokens"}  # which scripts give their tokenizer


SCHEMAS = tomllib.loads(Path(__file__).with_name("schema_keys.toml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("stack", SCHEMAS)
def test_every_key_of_a_stacks_schema_is_known(stack: str) -> None:
    """Translated, told or the trainer's: never unknown, and never called a misspelling of another."""
    dialect = next(each for each in dialects() if each.name == SCHEMAS[stack]["dialect"])
    for key in SCHEMAS[stack]["keys"]:
        if key == dialect.source:
            continue
        found = translate({dialect.source: "a/b", key: False}, dialect)
        assert not any("no known key" in note for note in found.notes), key
        assert not [p for p in found.problems if p.code == "recipe-misspelt-key"], key
        if key not in dialect.keys:
            told = translate({key: "something"}, dialect)
            assert key in told.trainer or told.problems, key


NEIGHBOURS = {
    "trl": "ref_model_name_or_path teacher_tokenizer_name_or_path reward_model_name_or_path judge_model_revision optim_target_modules type",
    "axolotl": "activation_checkpointing adapter_name base_model_ignore_patterns datasets flash_attn_fuse_mlp flash_attn_rms_norm fp8 "
    "gradient_accumulation_steps lora_mlp_kernel lora_o_kernel lora_on_cpu lora_qkv_kernel loraplus_lr_ratio optim_target_modules "
    "orpo_alpha pad_to_multiple_of processor_config relora sample_packing_eff_est tf32 tokenizer_type "
    "tokenizer_use_fast unfrozen_parameters unsloth_lora_o wandb_log_model",
    "llama-factory": "additional_target_lr apollo_target export_quantization_bit galore_rank galore_target gradient_checkpointing "
    "infer_backend local_rank loraplus_lr_ratio oft_rank oft_target pissa_convert quantization_device_map ref_model "
    "ref_model_adapters ref_model_quantization_bit resize_vocab reward_model_quantization_bit skip_special_tokens "
    "split_special_tokens tokenized_path use_apollo vllm_max_lora_rank",
    "llama-factory-v1": "kernel_config dist_config optim_config peft_config quant_config bf16 micro_batch_size train_dataset",
}
"""Keys of theirs that look like loading keys."""


@pytest.mark.parametrize("dialect", dialects(), ids=lambda d: d.name)
def test_a_trainers_key_is_no_misspelling(dialect: Dialect) -> None:
    for key in NEIGHBOURS[dialect.name].split():
        found = translate({key: False}, dialect)
        assert not found.problems, key
        assert found.trainer == {key: False}


@pytest.mark.parametrize(
    "dialect",
    [pytest.param(d, id=d.name, marks=[pytest.mark.slow] if d.name == "axolotl" else []) for d in dialects()],
)
def test_one_slip_of_the_finger_is_noticed(dialect: Dialect) -> None:
    """A letter left out, doubled, or swapped with the next; shorter words have too little left to be known
    by."""
    known = {dialect.source, *dialect.keys, *dialect.untranslated, *dialect.trainer}
    for key in [dialect.source, *dialect.keys]:
        slips = {key[:i] + key[i + 1 :] for i in range(len(key))} | {
            key[:i] + key[i] + key[i:] for i in range(len(key))
        }
        if len(key) > 5:
            slips |= {key[:i] + key[i + 1] + key[i] + key[i + 2 :] for i in range(len(key) - 1)} | {
                key.upper()
            }
        for slip in slips - known:
            found = translate({slip: True}, dialect)
            assert [p.code for p in found.problems] == ["recipe-misspelt-key"], (slip, found)
            assert slip not in found.trainer
