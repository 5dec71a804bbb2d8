"""`loadkit new-plugin`."""

from __future__ import annotations

import keyword
import re
import string
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import click

from loadkit.cli.grouped_help import GroupedCommand
from loadkit.errors import LoadkitError

__all__ = ["command"]

FILES: Mapping[str, str] = {
    "pyproject.toml": "pyproject.toml.txt",
    "README.md": "README.md.txt",
    "{package}/__init__.py": "init.py.txt",
    "{package}/plugin.py": "plugin.py.txt",
    "{package}/py.typed": "",
    "tests/test_conformance.py": "test_conformance.py.txt",
}
"""What is written, to the file that it is made from; "" for an empty one."""

NAME = re.compile(r"[a-z][a-z0-9-]*")


EXAMPLES = (
    ("loadkit new-plugin mine", "a distribution that passes its own checks"),
    ("loadkit new-plugin mine --folder ../mine", "in another place"),
)
"""Commands, and what each is for."""


@click.command("new-plugin", cls=GroupedCommand, examples=EXAMPLES)
@click.argument("name")
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    help="Where to; loadkit-NAME in the working directory by default.",
)
def command(name: str, folder: Path | None) -> None:
    """Write a distribution with a plugin called NAME: hooks, entry point, and a conformance test that
    passes."""
    target = write(name, folder)
    click.echo(f"wrote {target}: next, pip install --editable '{target}[test]' && loadkit check {name}")


def write(name: str, folder: Path | None = None) -> Path:
    """Write the files; `LoadkitError` where the name can't be a plugin's, or the folder is there already."""
    package = f"loadkit_{name.replace('-', '_')}"
    if not NAME.fullmatch(name) or keyword.iskeyword(package):
        raise LoadkitError(
            f"{name!r} can't be a plugin's name: it takes lower-case letters, digits and dashes, and begins with a letter"
        )
    target = folder or Path(f"loadkit-{name}")
    if target.exists():
        raise LoadkitError(
            f"{str(target)!r} is there already: choose another name, or another place with --folder"
        )
    from loadkit.testing import LEVEL

    words = {"name": name, "package": package, "distribution": f"loadkit-{name}", "level": LEVEL}
    sources = resources.files("loadkit.cli") / "new_plugin_files"
    for path, source in FILES.items():
        template = (sources / source).read_text(encoding="utf-8") if source else ""
        file = target / path.format(**words)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(string.Template(template).substitute(words), encoding="utf-8")
    return target
