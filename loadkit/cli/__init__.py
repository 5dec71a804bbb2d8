"""The command line, `loadkit`: a module a command."""

from loadkit.cli.main import main

__all__ = ["main"]
