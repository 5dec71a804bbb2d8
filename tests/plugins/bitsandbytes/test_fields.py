"""The fields of a BitsAndBytesConfig are options: none is dropped, and one that isn't there is an error."""

from __future__ import annotations

from typing import Any

import pytest
from examples import planned, problems


@pytest.mark.parametrize(
    ("given", "code", "said"),
    [
        ({"bnb_4bit_quant_typ": "nf4"}, "unknown-field", "did you mean 'bnb_4bit_quant_type'"),
        ({"bnb_4bit_quant_type": "nf5"}, "bad-field", "did you mean 'nf4'"),
        ({"bnb_4bit_use_double_quant": "yes"}, "bad-field", "takes a bool"),
        ({"bnb_4bit_compute_dtype": "bf16"}, "bad-field", "bfloat16"),
    ],
)
def test_fields_that_cant_be(given: dict[str, Any], code: str, said: str) -> None:
    assert said in problems(quantization_config={"load_in_4bit": True, **given})[code]


def test_a_misspelt_switch() -> None:
    assert "load_in_4bit" in problems(quantization_config={"load_in_4bits": True})["unknown-field"]


@pytest.mark.parametrize("field", ["llm_int8_skip_modules", "modules_to_not_convert", "skip_modules"])
def test_modules_to_skip_are_united(field: str) -> None:
    config = {"load_in_8bit": True, field: ["lm_head"]}
    quantization = planned(quantization_config=config, skip_modules=["q_proj"]).quantization
    assert quantization is not None
    assert quantization.skip_modules == ("q_proj", "lm_head")


def test_two_demands_that_differ_are_a_conflict() -> None:
    config = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    told = problems(quantization_config=config, bnb_4bit_quant_type="fp4")["option-twice"]
    assert "quantization_config(bnb_4bit_quant_type='nf4') and bnb_4bit_quant_type='fp4'" in told


def test_a_field_that_is_off_goes_over_a_profiles() -> None:
    config = {"load_in_4bit": True, "bnb_4bit_use_double_quant": False}
    quantization = planned(None, "qlora", quantization_config=config).quantization
    assert quantization is not None
    assert quantization.options["bnb_4bit_use_double_quant"] is False


def test_an_object_is_met_as_it_is() -> None:
    import transformers

    config = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=["lm_head"]
    )
    quantization = planned(
        quantization_config=config, bnb_4bit_use_double_quant=True, skip_modules=["q_proj"]
    ).quantization
    assert quantization is not None
    assert quantization.options["bnb_4bit_use_double_quant"] is True
    assert quantization.skip_modules == ("q_proj", "lm_head")
