"""What every launched process runs: `python program.py module:function OUT ARGS...`."""

import importlib
import os
import sys
import warnings
from pathlib import Path

import pytest
from hub_server import point_to

if __name__ == "__main__":
    # Of peft 0.21.2 over transformers 5.23, as in the tests' own settings.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
    module, _, function = sys.argv[1].partition(":")
    with pytest.MonkeyPatch.context() as patch:
        if hub := os.environ.get("HF_ENDPOINT"):  # huggingface_hub may have been imported before
            point_to(patch, hub, Path(os.environ["HF_HOME"]))
        getattr(importlib.import_module(f"ranks.{module}"), function)(*sys.argv[2:])
