"""The command line: `loadkit demo | plan | load | plugins | profiles`."""

from loadkit.cli.main import main

__all__ = ["main"]
