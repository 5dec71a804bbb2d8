"""What every launched process runs: `python program.py module:function OUT ARGS...`."""

import importlib
import sys
import warnings

if __name__ == "__main__":
    # Of peft 0.21.2 over transformers 5.23, as in the tests' own settings.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
    module, _, function = sys.argv[1].partition(":")
    getattr(importlib.import_module(f"ranks.{module}"), function)(*sys.argv[2:])
