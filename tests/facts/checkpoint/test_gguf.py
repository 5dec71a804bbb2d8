"""GGUF files: their header as facts, whatever the bytes are."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stored_formats import store_gguf

from loadkit.errors import Problem
from loadkit.facts.checkpoint.gguf import MODEL_TYPES, WITHOUT_PACKAGE
from loadkit.facts.checkpoint.gguf_header import TYPES, GgufHeader, read_gguf_header
from loadkit.facts.checkpoint.read import read_checkpoint

Tiny = Callable[..., Path]


@pytest.fixture(scope="module")
def file(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return store_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", tiny("llama"))


def header(data: bytes) -> GgufHeader | Problem:
    return read_gguf_header("a.gguf", len(data), lambda start, stop: data[start:stop])


def fault(data: bytes) -> str:
    found = header(data)
    assert isinstance(found, Problem)
    return found.message


def test_a_file_is_a_checkpoint(file: Path) -> None:
    for source, options in ((str(file), {}), (str(file.parent), {"gguf_file": "tiny.gguf"})):
        found, problems = read_checkpoint(source, **options)
        assert problems == ()
        assert (found.model_type, found.weight_format, found.weight_files) == (
            "llama",
            "gguf",
            ("tiny.gguf",),
        )
        assert found.location == str(file.parent)
        assert found.config["hidden_size"] == 64
        assert found.tensors["model.layers.0.self_attn.q_proj.weight"].dtype == "Q8_0"
        assert found.tensors["lm_head.weight"].dtype == "F32"
        assert found.processing.special_token("eos_token") == "</s>"
        assert found.processing.gguf_file == "tiny.gguf"


def test_a_file_that_is_not_there(file: Path) -> None:
    _, problems = read_checkpoint(str(file.parent), gguf_file="tinny.gguf")
    assert "did you mean 'tiny.gguf'?" in problems[0].message


def test_what_transformers_does_not_load(tmp_path: Path) -> None:
    def text(word: str) -> bytes:
        return struct.pack("<Q", len(word)) + word.encode()

    (tmp_path / "a.gguf").write_bytes(
        b"GGUF"
        + struct.pack("<IQQ", 3, 0, 1)
        + text("general.architecture")
        + struct.pack("<I", 8)
        + text("clip")
    )
    _, problems = read_checkpoint(str(tmp_path / "a.gguf"))
    assert [p.code for p in problems] == ["gguf-unsupported"]
    assert "'clip'" in problems[0].message


def test_damaged_files(file: Path) -> None:
    whole = file.read_bytes()
    assert isinstance(header(whole), GgufHeader)
    assert "starts with" in fault(b"version https://git-lfs")
    assert "version 9" in fault(b"GGUF" + struct.pack("<I", 9) + whole[8:])
    assert "cut short" in fault(whole[:-100])
    assert "ends within its header" in fault(whole[:200])
    assert "announces" in fault(whole[:24] + struct.pack("<Q", 2**62) + whole[32:])


@given(data=st.binary(max_size=300), at=st.integers(0, 4000), byte=st.integers(0, 255))
def test_whatever_the_bytes_nothing_is_raised(file: Path, data: bytes, at: int, byte: int) -> None:
    header(b"GGUF" + data)
    header(b"GGUF" + struct.pack("<IQQ", 3, 2, 2) + data)
    whole = bytearray(file.read_bytes())
    whole[at] = byte
    header(bytes(whole))


def test_the_tables_are_transformers() -> None:
    from transformers.integrations.gguf import GGUF_ARCHS
    from transformers.integrations.gguf.dequant import GGML_BLOCK, GGML_NAME
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    assert set(WITHOUT_PACKAGE) == set(GGUF_ARCHS)
    known = {*GGUF_SUPPORTED_ARCHITECTURES, *GGUF_ARCHS}
    told = {"gemma3_text": "gemma3", "qwen3_5_text": "qwen35", "qwen3_5_moe_text": "qwen35moe"}
    assert {told.get(model_type, model_type) for model_type in MODEL_TYPES.values()} <= known
    for number, (values, nbytes) in GGML_BLOCK.items():
        assert TYPES[number] == (GGML_NAME[number], values, nbytes)
