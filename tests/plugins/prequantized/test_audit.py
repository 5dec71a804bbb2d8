"""What the audit says of a stored format that isn't what was planned, without loading one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

import loadkit
from loadkit_plugins.prequantized.audit import _kept, _set

STORED = loadkit.Quantization(method="awq", bits=4, prequantized=True)


@pytest.mark.parametrize(
    ("packed", "method", "codes"),
    [
        (["layers.0.weight"], "awq", []),
        ([], "awq", ["not-quantized"]),
        (["layers.0.weight"], "gptq", ["other-method"]),
        (["layers.0.weight"], "", ["other-method"]),
    ],
)
def test_a_format_that_is_kept(packed: list[str], method: str, codes: list[str]) -> None:
    assert [finding.code for finding in _kept(STORED, packed, method)] == codes


@pytest.mark.parametrize(("backend", "codes"), [("auto_trainable", []), ("auto", ["stored-setting"])])
def test_a_setting_that_a_training_load_needs(backend: str, codes: list[str]) -> None:
    settings = loadkit.StoredFormat(settings={"backend": "auto_trainable"})
    planned = loadkit.Quantization(method="gptq", bits=4, prequantized=True, format=settings)
    config = SimpleNamespace(backend=backend)
    assert [finding.code for finding in _set(planned, config)] == codes
