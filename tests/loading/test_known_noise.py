"""Lines of libraries that mislead are left out, and no others."""

from __future__ import annotations

import logging
import subprocess
import sys
from importlib.util import find_spec

import pytest

from loadkit.loading.known_noise import KNOWN_NOISE, leave_out_for_good, without_known_noise

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
    # After the block, but for what is left out for good; a logger that propagates hands it on twice.
    assert said.count(SAID[noise.logger]) in ((0,) if noise.from_import_on else (1, 2))
    assert "something else" in said
    assert any("MISSING" in text for text in said) == bool(noise.unless)
    assert logger.filters == before
    assert noise.reason


@pytest.mark.slow
def test_trl_beside_loadkit_gives_no_advice_to_install_kernels() -> None:
    """As in the README: TRL imports bitsandbytes, which advises it, long before anything is loaded."""
    code = "import loadkit, trl; from trl import SFTTrainer; import bitsandbytes"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "install kernels" not in done.stderr
    code = "import bitsandbytes.backends.cpu.ops"
    plain = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "install kernels" in plain.stderr or find_spec("kernels"), (
        "bitsandbytes is quiet now: the line can go"
    )


def test_it_is_left_out_once_however_often_one_asks() -> None:
    for _ in range(3):
        leave_out_for_good()
    for noise in KNOWN_NOISE:
        assert len(logging.getLogger(noise.logger).filters) == int(noise.from_import_on)
