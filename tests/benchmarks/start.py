"""How long planning and starting up take, beside importing AutoConfig and reading the config.

    python tests/benchmarks/start.py --rounds 9

Commands run in processes of their own, taking turns; medians of wall seconds, caches warm. Plans are made in
one process, with loadkit's own plugins alone and with a hundred more, each of which has an opinion on the
dtype of some family.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from checkpoint import make

__all__ = ["measured"]

PLANS, TURNS, PLUGINS = 200, 9, 100


def measured(folder: Path, rounds: int = 9) -> Iterator[dict[str, Any]]:
    """Every measurement: what, its median, its unit and the values themselves."""
    for what, values in processes(folder, rounds).items():
        yield {"what": what, "median": statistics.median(values), "unit": "s", "values": values}
    for what, values in rates(folder).items():
        yield {"what": what, "median": statistics.median(values), "unit": "a second", "values": values}


def processes(folder: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds of whole processes."""
    loadkit = str(Path(sys.executable).with_name("loadkit"))
    reading = f"import transformers; transformers.AutoConfig.from_pretrained({str(folder)!r})"
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "import loadkit": [sys.executable, "-c", "import loadkit"],
        "loadkit --help": [loadkit, "--help"],
        "loadkit plan FOLDER --profile qlora": [loadkit, "plan", str(folder), "--profile", "qlora"],
        "AutoConfig.from_pretrained(FOLDER)": [sys.executable, "-c", reading],
    }
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds + 1):  # the first one warms up
        for name, command in commands.items():
            begun = time.perf_counter()
            subprocess.run(command, capture_output=True, check=True)
            if number:
                taken[name].append(time.perf_counter() - begun)
    return taken


def rates(folder: Path) -> dict[str, list[float]]:
    """Plans a second in this process, with and without further plugins, taking turns."""
    import loadkit

    more = loadkit.PluginManager()
    for number in range(PLUGINS):
        more.register(opinionated(number), f"third-party-{number}")
    managers = {"plans": loadkit.PluginManager(), f"plans with {PLUGINS} more plugins": more}
    found: dict[str, list[float]] = {name: [] for name in managers}
    for number in range(TURNS + 1):
        for name, manager in managers.items():
            begun = time.perf_counter()
            for _ in range(PLANS):
                loadkit.plan(folder, "qlora", plugin_manager=manager)
            if number:
                found[name].append(PLANS / (time.perf_counter() - begun))
    return found


def opinionated(number: int) -> types.ModuleType:
    """A plugin that knows one family's dtype."""
    import loadkit

    def loadkit_choose_dtype(context: Any, architecture: Any) -> Any:
        if context.checkpoint.model_type != f"family-{number}":
            return None
        return loadkit.Claim(value="float32", because="this family overflows in 16 bits")

    plugin = types.ModuleType(f"third_party_{number}")
    plugin.loadkit_choose_dtype = loadkit.hookimpl(loadkit_choose_dtype)  # type: ignore[attr-defined]
    return plugin


def main() -> None:
    """Measure and print a line each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "loadkit-benchmarks")
    args = parser.parse_args()
    for found in measured(make(args.work / "tiny", "tiny"), args.rounds):
        low, high = min(found["values"]), max(found["values"])
        print(f"{found['what']:36} {found['median']:9.3f} {found['unit']}  ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
