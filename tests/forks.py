"""Processes of their own that needn't import the libraries, which takes seconds: they are forked off one that
has.

For what happens in another process: what it prints, how it ends, what it leaves behind. What an import costs,
how Python itself starts and ends, and what a library reads from the environment while it is imported need a
Python of their own.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["Fork", "Forks"]

LIBRARIES = (
    *("accelerate", "bitsandbytes", "numba", "peft", "torch", "transformers.models.auto.modeling_auto"),
    *("loadkit.cli.main", "loadkit.loading.load", "loadkit.planning.pipeline"),
)
TIMEOUT = 500.0
"""Seconds until a process counts as hung; a failure, never a measurement."""


class Fork:
    """A process that has been started.

    Parameters:
        process: what was forked.
        output: the folder that its output goes to.
    """

    def __init__(self, process: Any, output: Path) -> None:
        self.process = process
        self._output = output

    @property
    def returncode(self) -> int | None:
        """The exit code, a signal's number negative; None while it runs."""
        code: int | None = self.process.exitcode
        return code

    def kill(self) -> None:
        self.process.kill()
        self.process.join()

    def wait(self, timeout: float = TIMEOUT) -> subprocess.CompletedProcess[str]:
        """Wait for its end; what it printed, and how it ended."""
        self.process.join(timeout)
        hung = self.returncode is None
        if hung:
            self.kill()
        out, err = ((self._output / name).read_text(errors="replace") for name in ("out", "err"))
        assert not hung, f"still running after {timeout:g} s:\n{out}{err}"
        return subprocess.CompletedProcess(self.process.name, self.process.exitcode, out, err)


class Forks:
    """Forks processes off one that has imported the libraries and computed nothing.

    Where there is a GPU each process imports them itself: asking for it in the parent would spoil it for the
    children.

    Parameters:
        folder: where the processes' output goes.
    """

    def __init__(self, folder: Path) -> None:
        import torch

        self._folder, self._count = folder, 0
        self._context: Any = multiprocessing.get_context(
            "spawn" if torch.cuda.is_available() else "forkserver"
        )
        if not torch.cuda.is_available():
            plugins = metadata.entry_points(group="loadkit")
            own = [entry.module for entry in plugins if entry.dist and entry.dist.name == "loadkit"]
            self._context.set_forkserver_preload([*LIBRARIES, *own])

    def start(
        self,
        what: str | Path,
        *arguments: object,
        environ: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> Fork:
        """Start a process.

        Parameters:
            what: code, a script's file, or a function as "module:function", which is called with the
                arguments as texts.
            arguments: of the command line.
            environ: variables beside this process's own.
            folder: where it runs.
        """
        self._count += 1
        output = self._folder / str(self._count)
        output.mkdir()
        for name in ("out", "err"):
            (output / name).touch()
        process = self._context.Process(
            target=_child,
            args=(what, [str(a) for a in arguments], {**os.environ, **(environ or {})}, folder, output),
        )
        process.start()
        return Fork(process, output)

    def run(self, what: str | Path, *arguments: object, **more: Any) -> subprocess.CompletedProcess[str]:
        """Start a process, and wait for its end."""
        return self.start(what, *arguments, **more).wait()


def _child(
    what: str | Path, arguments: list[str], environ: dict[str, str], folder: Path | None, output: Path
) -> None:
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(output / name, os.O_WRONLY | os.O_APPEND), descriptor)
    os.environ.clear()
    os.environ.update(environ)
    sys.path[:0] = [path for path in environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    importlib.invalidate_caches()
    if folder is not None:
        os.chdir(folder)
    if threads := environ.get("OMP_NUM_THREADS"):
        import torch

        torch.set_num_threads(int(threads))
    call = _what(what)
    sys.argv = [str(what), *arguments]
    call(arguments)


def _what(what: str | Path) -> Callable[[list[str]], object]:
    if isinstance(what, Path):
        return lambda arguments: runpy.run_path(str(what), run_name="__main__")
    module, colon, name = what.partition(":")
    if colon and module.replace(".", "").isidentifier() and name.isidentifier():
        return lambda arguments: getattr(importlib.import_module(module), name)(*arguments)
    return lambda arguments: exec(compile(what, "<forked>", "exec"), {"__name__": "__main__"})
