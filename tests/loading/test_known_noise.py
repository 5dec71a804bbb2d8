"""Lines of libraries that mislead are left out while a model loads, and no others."""

from __future__ import annotations

import logging

import pytest

from loadkit.loading.known_noise import KNOWN_NOISE, without_known_noise

SAID = {
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward from kernels-community: No module named 'kernels'.",
    "torchao": "Failed to load /x/torchao/_C_mxfp8.cpython-310-x86_64-linux-gnu.so: Could not load this library",
    "torch.utils._pytree": "<enum 'KernelPreference'> is an Enum subclass and is now natively supported by torch.compile",
    "transformers.modeling_utils": "\x1b[1mMistralForCausalLM LOAD REPORT\x1b[0m from: x\nk | UNEXPECTED",
}


@pytest.mark.parametrize("noise", KNOWN_NOISE, ids=lambda noise: noise.logger)
def test_it_is_left_out_by_name(noise, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger(noise.logger)
    before = list(logger.filters)
    logger.addHandler(caplog.handler)
    try:
        with without_known_noise():
            logger.warning(SAID[noise.logger])
            logger.warning("something else")
            if noise.unless:
                logger.warning("%s | MISSING", SAID[noise.logger])
        logger.warning(SAID[noise.logger])
    finally:
        logger.removeHandler(caplog.handler)
    said = [record.getMessage() for record in caplog.records]
    assert said.count(SAID[noise.logger]) in (
        1,
        2,
    )  # after the block; a logger that propagates hands it on twice
    assert "something else" in said
    assert any("MISSING" in text for text in said) == bool(noise.unless)
    assert logger.filters == before
    assert noise.reason
