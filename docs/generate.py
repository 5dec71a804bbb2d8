"""Write what the code says: the reference pages, the trees of rooms in CONTRIBUTING.md and architecture.md,
the picture.

python docs/generate.py            write all of it
python docs/generate.py --check    exit with 1 where something is stale
"""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
import sys
import typing
from pathlib import Path
from types import ModuleType

import click

import loadkit
from loadkit import plugins
from loadkit.cli.explain import explanations
from loadkit.cli.main import COMMANDS, main
from loadkit.hooks.manager import PluginManager
from loadkit.request.profiles import find_profile

sys.path.insert(0, str(Path(__file__).parent))
from formats_page import formats
from hook_pages import hook_pages
from plan_picture import PLAN_PICTURE, plan_picture
from problem_codes import problem_codes
from request_picture import PICTURE, picture
from rooms import house, rooms, stack
from stack_table import stack_table

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "docs" / "reference"
API: typing.Mapping[str, tuple[str, ...]] = {
    "Plan and load": ("plan", "load", "load_processing_class", "merge"),
    "What they give": ("Plan", "Decision", "Memory", "Loaded", "Report", "Manifest"),
    "What can go wrong": (
        *("LoadkitError", "PlanError", "LoadError", "AuditError", "ReplayError", "RankError", "PluginError"),
        *("Problem", "Finding", "LoadkitWarning"),
    ),
}
"""The names that everybody meets, first and in this order."""

NOTE = "<!-- Made by docs/generate.py: change the code's docstrings, not this page. -->\n"


WIDE = "---\nhide: [toc]\n---"
"""Of a page with a wide table: it has the room of the contents beside it too."""


def options() -> str:
    """One table a stage, from the plugins' declarations."""
    declared = {o.name: (plugin, o) for plugin, o in PluginManager(environ={}).options.found.values()}
    page = [
        NOTE,
        "# Options",
        "What `loadkit.plan()` and `loadkit.load()` take, and, with dashes, the command line.",
    ]
    for stage in sorted({o.stage for _, o in declared.values()}):
        rows = [
            f"| `{o.name}` | {o.help}{_choices(o)}{_aliases(o)} | {o.type} | {plugin} |"
            for _, (plugin, o) in sorted(declared.items())
            if o.stage == stage
        ]
        page += [
            f"## {stage}",
            "\n".join(["| option | what it does | type | declared by |", "|---|---|---|---|", *rows]),
        ]
    return _joined(page)


def profiles() -> str:
    """One section a profile, with its options in full."""
    known = PluginManager(environ={}).profiles.found
    page = [NOTE, "# Profiles"]
    for name, (_, profile) in sorted(known.items()):
        extends = f" Extends `{profile.extends}`." if profile.extends else ""
        rows = "\n".join(f"{key} = {_toml(value)}" for key, value in find_profile(name, known)[0].items())
        page += [f"## `{name}`", profile.description + extends, f"```toml\n{rows}\n```"]
    return _joined(page)


def command_line() -> str:
    """Every command's help."""
    page = [NOTE, "# Command line", _help(main, "loadkit")]
    for name in COMMANDS:
        command = main.get_command(click.Context(main), name)
        assert command is not None
        page += [f"## `loadkit {name}`", _help(command, f"loadkit {name}")]
        below = command.commands if isinstance(command, click.Group) else {}
        for sub, its in below.items():
            page += [f"### `loadkit {name} {sub}`", _help(its, f"loadkit {name} {sub}")]
    return _joined(page)


def api() -> str:
    """The docstring of every name of `loadkit`."""
    about = (
        "Everything here is `loadkit.NAME`: what users and most plugins need. What some plugins need beyond it is in "
        "[`loadkit.plugins`](plugin-api.md)."
    )
    sections = [
        *API.items(),
        ("The rest, in the order of the alphabet", sorted(loadkit.__all__, key=str.casefold)),
    ]
    page, told = [NOTE, "# Public names", about], set[str]()
    for title, names in sections:
        page += [f"## {title}", *_names(loadkit, [name for name in names if name not in told], "###")]
        told |= set(names)
    return _joined(page)


def plugin_api() -> str:
    """The docstring of every name of `loadkit.plugins`."""
    about = (
        "Everything here is `loadkit.plugins.NAME`: facts in detail, kept entries, loading aids, words for messages. "
        "It is as public as [`loadkit` itself](api.md), and apart because few plugins need it."
    )
    renamed = [f"`{old}` (now `{new}`)" for old, new in loadkit._RENAMED.items()]
    moved = ", ".join([*(f"`{name}`" for name in loadkit._MOVED), *renamed])
    before = (
        f"## Names that were in `loadkit` before\n\nThey work there until version 2, with a warning: {moved}."
    )
    return _joined([NOTE, "# Names for plugins", about, *_names(plugins, plugins.__all__), before])


def _names(package: ModuleType, names: typing.Iterable[str], mark: str = "##") -> typing.Iterator[str]:
    """A section a public name."""
    for name in names:
        value = getattr(package, name)
        yield f"{mark} `{name}`"
        if inspect.isfunction(value):
            yield f"```text\n{_signature(name, value)}\n```"
        kind = isinstance(value, type) or inspect.isfunction(value)
        yield _prose(inspect.getdoc(value) or "") if kind else _plain(name, value, package)


def codes() -> str:
    """Every code of a problem or finding that stands in the sources, as `loadkit explain` has it, with its
    sources."""
    found = problem_codes(ROOT, {"loadkit": "loadkit", "plugins/loadkit_plugins": "loadkit_plugins"})
    known = explanations()
    if differing := found.keys() ^ known.keys():
        raise LookupError(
            f"loadkit/cli/explanations and the sources differ in {', '.join(sorted(differing))}"
        )
    about = (
        "Stable names to tell problems (`PlanError.problems`) and findings (`Report.findings`) apart. "
        "`loadkit explain CODE` prints the same."
    )
    page = [
        NOTE,
        "# Problem and finding codes",
        about,
    ]
    for group in sorted({each.about for each in known.values()}):
        page.append(f"## {group}")
        for each in known.values():
            if each.about == group:
                ways = "\n".join(f"- {way}" for way in each.ways_out)
                homes = ", ".join(f"`{home}`" for home in sorted(found[each.code]))
                page.append(f"### `{each.code}`\n\n{each.what} {each.why}\n\n{ways}\n\nFrom {homes}.")
    return _joined(page)


def conformance() -> str:
    """The rules of the conformance kit, a table a group."""
    from loadkit.testing import known_checks

    page = [
        NOTE,
        "# Conformance checks",
        "What `loadkit check NAME` and `loadkit.testing.conformance` hold a plugin to. Codes are stable; a newer check warns before it breaks.",
        "[Check a plugin](../how-to/check-a-plugin.md) tells how they are run: scenarios, profiles, levels, time limits.",
    ]
    for group in dict.fromkeys(c.group for c in known_checks()):
        rows = [
            f"| `{c.code}` | {c.title} | {c.remedy} | {c.since} |" for c in known_checks() if c.group == group
        ]
        page += [
            f"## {group}",
            "\n".join(["| code | rule | how to keep it | since |", "|---|---|---|---|", *rows]),
        ]
    return _joined(page)


def _signature(name: str, function: typing.Callable[..., object]) -> str:
    """A call of it, a parameter a line where there are several; annotations as they stand in the source."""
    found = inspect.signature(function)
    parts, starred = [], False
    for each in found.parameters.values():
        if each.kind is each.KEYWORD_ONLY and not starred:
            parts.append("*")
        starred = starred or each.kind in (each.KEYWORD_ONLY, each.VAR_POSITIONAL)
        parts.append(str(each.replace(annotation=each.empty)))
        if each.annotation is not each.empty:
            plain, is_, default = parts[-1].partition("=")
            parts[-1] = f"{plain}: {each.annotation}" + (f" = {default}" if is_ else "")
    result = "" if found.return_annotation is found.empty else f" -> {found.return_annotation}"
    one = f"{name}({', '.join(parts)}){result}"
    return (
        one if len(one) <= 100 else "\n".join([f"{name}(", *(f"    {part}," for part in parts), f"){result}"])
    )


def _plain(name: str, value: object, package: ModuleType) -> str:
    """What a name that is neither class nor function stands for: plain data with the words below it in the
    source."""
    if typing.get_origin(value) is not None:
        return f"`{name} = {value}`".replace("loadkit.schema.values.", "").replace("typing.", "")
    if isinstance(value, (tuple, dict)):
        return f"`{name} = {value!r}`\n\n{_words_below(name, package)}"
    return _prose(inspect.getdoc(value) or "")


def _words_below(name: str, package: ModuleType) -> str:
    """The string that stands below a constant, in the module that the package has it from."""
    for node in ast.walk(_tree(package)):
        if isinstance(node, ast.ImportFrom) and name in {alias.name for alias in node.names}:
            body = _tree(importlib.import_module(str(node.module))).body
            for constant, below in itertools.pairwise(body):
                named = getattr(constant, "targets", [getattr(constant, "target", None)])
                if name in {getattr(target, "id", "") for target in named}:
                    return str(ast.literal_eval(below.value)) if isinstance(below, ast.Expr) else ""
    return ""


def _tree(module: ModuleType) -> ast.Module:
    return ast.parse(inspect.getsource(module))


def _prose(text: str) -> str:
    """A docstring as Markdown: its sections become bold words, its parameters a list."""
    lines, section, fenced = [], False, False
    for line in text.splitlines():
        if line.rstrip() == "Example:":
            lines += ["**Example**", "", "```python"]
            fenced, section = True, False
        elif fenced and line and not line.startswith(" "):
            raise LookupError(f"an example is the last of a docstring, and this stands behind one: {line}")
        elif line.rstrip() in ("When:", "Parameters:", "Returns:", "Raises:", "Yields:"):
            lines += [f"**{line.strip().rstrip(':')}**", ""]
            section = line.startswith(("Parameters", "Raises"))
        elif section and line.startswith("    ") and not line.startswith("     "):
            name, _, rest = line.strip().partition(": ")
            lines.append(f"- `{name}`: {rest}")
        else:
            lines.append(
                f"  {line.strip()}"
                if section and line.strip()
                else line.strip()
                if line.startswith("    ") and not section
                else line
            )
    return "\n".join([*lines, *(["```"] if fenced else [])])


def _help(command: click.Command, path: str) -> str:
    # Said here, as click keeps the first context's for good: it would depend on what was called before.
    help_names = main.context_settings["help_option_names"]
    text = command.get_help(
        click.Context(
            command, info_name=path, max_content_width=100, terminal_width=100, help_option_names=help_names
        )
    )
    return "```text\n" + "\n".join(line.rstrip() for line in text.splitlines()) + "\n```"


def _choices(option: loadkit.Option) -> str:
    return f" ({', '.join(f'`{c}`' for c in option.choices)})" if option.choices else ""


def _aliases(option: loadkit.Option) -> str:
    return f"; also {', '.join(f'`{a}`' for a in option.aliases)}" if option.aliases else ""


def _toml(value: object) -> str:
    return (
        {True: "true", False: "false"}.get(value, repr(value))
        if isinstance(value, bool)
        else repr(value).replace("'", '"')
    )


def _joined(parts: typing.Iterable[str]) -> str:
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


PAGES = {
    "options": options,
    "profiles": profiles,
    "cli": command_line,
    "api": api,
    "plugin-api": plugin_api,
    "codes": codes,
    "conformance": conformance,
    "formats": lambda: _joined([WIDE, NOTE, *formats()]),
}


MARKED: dict[str, dict[str, typing.Callable[[Path], str]]] = {
    "CONTRIBUTING.md": {"rooms": rooms},
    "docs/explanation/dependencies.md": {"stacks": stack_table},
    "docs/explanation/architecture.md": {"floors": stack, "rooms": house},
}
"""Pages written by hand with a made part between marks: name of the part to what makes it."""


def pages() -> dict[Path, str]:
    """Everything that is made, by the file that it belongs in."""
    reference = {**{name: make() for name, make in PAGES.items()}, **hook_pages(_prose, NOTE)}
    made = {REFERENCE / f"{name}.md": text for name, text in reference.items()}
    return {
        **made,
        PICTURE: picture(),
        PLAN_PICTURE: plan_picture(),
        **{ROOT / name: _filled(ROOT / name, parts) for name, parts in MARKED.items()},
    }


def _filled(page: Path, parts: typing.Mapping[str, typing.Callable[[Path], str]]) -> str:
    """A page with its made parts as they should be."""
    text = page.read_text(encoding="utf-8")
    for name, make in parts.items():
        begin, end = f"<!-- {name}: made by docs/generate.py -->\n", f"<!-- end of {name} -->"
        before, mark, rest = text.partition(begin)
        _, closing, after = rest.partition(end)
        if not (mark and closing):
            raise LookupError(f"{page} has no place for {name}: {begin}{end}")
        text = f"{before}{begin}{make(ROOT)}\n{end}{after}"
    return text


def stale() -> list[str]:
    """The files that aren't what the code says, and those of hooks that are no more."""
    made = pages()
    wrong = [p for p, text in made.items() if not p.is_file() or p.read_text(encoding="utf-8") != text]
    return [path.relative_to(ROOT).as_posix() for path in (*wrong, *_leftover(made))]


def _leftover(made: typing.Container[Path]) -> list[Path]:
    return [path for path in sorted((REFERENCE / "hooks").glob("*.md")) if path not in made]


def write() -> None:
    """Write every file, and take away those of hooks that are no more."""
    made = pages()
    for path, text in made.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    for path in _leftover(made):
        path.unlink()


if __name__ == "__main__":
    if "--check" not in sys.argv:
        write()
    elif found := stale():
        sys.exit(f"stale: {', '.join(found)}; run python docs/generate.py")
