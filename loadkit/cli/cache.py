"""`loadkit cache`."""

from __future__ import annotations

import sys
import time
from typing import Any

import click
import msgspec

from loadkit.cache.disk_space import size_limit
from loadkit.cache.entries import Entries
from loadkit.cache.records import Entry
from loadkit.cli.json_output import json_option, print_json
from loadkit.errors import LoadkitError
from loadkit.text.units import size, span

__all__ = ["command"]

DAMAGED = 8
"""The exit code of `loadkit cache verify` where an entry was damaged."""


SOURCE = 28
"""Columns that a source has at least, however narrow the terminal."""


@click.group("cache")
def command() -> None:
    """Look after the cache of quantized checkpoints: what is quantized while loading is kept there for the
    next load.

    LOADKIT_CACHE_MAX says how much it may hold (50GB, 5% of the disk; 10% by default),
    LOADKIT_QUANTIZED_CACHE=0 turns it off.
    """


@command.command("path")
def path() -> None:
    """Print the folder."""
    click.echo(Entries().root)


@command.command("list")
@json_option()
def list_(as_json: bool) -> None:
    """List the entries, the most recently used first, and what can't be kept, with the reason."""
    entries = Entries()
    found, refused, strangers = list(entries), list(entries.refusals), entries.strangers()
    if as_json:
        print_json(
            {
                "folder": str(entries.root),
                "limit": entries.limit,
                "entries": [_plain(e) for e in found],
                "refusals": [
                    {"key": key, "reason": r.reason, "at": r.at, "lasting": r.lasting} for key, r in refused
                ],
                "strangers": strangers,
            }
        )
        return
    if found:
        _print(found)
    held = size(sum(e.bytes for e in found))
    click.echo(f"{held} of at most {size(entries.limit)} in {entries.root}")
    if broken := len(entries.broken()):
        click.echo(f"{broken} unfinished or damaged; `loadkit cache prune` removes what nobody is writing")
    for key, refusal in refused:
        until = f"until `loadkit cache prune {key[:12]}`" if refusal.lasting else "for an hour"
        at = time.strftime("%Y-%m-%d %H:%M", time.localtime(refusal.at))
        click.echo(f"{key[:12]} isn't kept since {at}, {until}: {refusal.reason}")
    if strangers:
        click.echo(f"not loadkit's, and left alone: {', '.join(strangers)}")
    if entries.off:
        click.echo(f"turned off: {entries.off}")


@command.command("verify")
@click.argument("key", required=False, default="")
@json_option()
def verify(key: str, as_json: bool) -> None:
    """Read every byte of the entries whose key begins with KEY (all by default), and remove the damaged
    ones."""
    from loadkit.cli.terminal import working

    entries = Entries()
    verdicts = {}
    with working("verifying") as say:
        for entry in _chosen(entries, key):
            say(f"verifying {entry.record.key[:12]}, {size(entry.bytes)}")
            verdicts[entry.record.key] = entry.damage()
    for damaged in (name for name, fault in verdicts.items() if fault):
        entries.drop(damaged)
    if as_json:
        print_json(verdicts)
    else:
        for name, fault in verdicts.items():
            click.echo(f"{name[:12]}  {f'damaged and removed: {fault}' if fault else 'whole'}")
        if not verdicts:
            click.echo("the cache is empty")
    if any(verdicts.values()):
        sys.exit(DAMAGED)


@command.command("prune")
@click.argument("key", required=False, default="")
@click.option("--max", "limit", help="What may stay, such as 20GB or 5%; by default the cache's own limit.")
@click.option("--all", "everything", is_flag=True, help="Remove every entry.")
@json_option()
def prune(key: str, limit: str | None, everything: bool, as_json: bool) -> None:
    """Remove the least recently used entries over the limit and what unfinished writings left; or those whose
    key begins with KEY. With KEY or --all, what couldn't be kept is tried again."""
    entries = Entries()
    if sum((bool(key), limit is not None, everything)) > 1:
        raise LoadkitError("prune was given several of KEY, --max and --all: give one")
    cleared = [name for name, _ in entries.refusals if everything or (key and name.startswith(key))]
    for name in cleared:
        entries.refusals.clear(name)
    if key:
        removed = [] if cleared and not _beginning(entries, key) else _chosen(entries, key)
        for entry in removed:
            entries.drop(entry.record.key)
    else:
        removed = entries.prune(
            0 if everything else None if limit is None else size_limit(limit, entries.root)
        )
    if as_json:
        print_json([_plain(e) for e in removed])
        return
    for entry in removed:
        click.echo(
            f"removed {entry.record.key[:12]}  {size(entry.bytes)}  {entry.record.about.get('source', '')}"
        )
    for name in cleared:
        click.echo(f"{name[:12]} may be kept again")
    click.echo(f"{size(sum(e.bytes for e in removed))} freed, {size(entries.bytes)} stay")


@command.command("copies")
@click.option("--drop", "address", default="", help="Remove what is kept of this address.")
@click.option("--all", "everything", is_flag=True, help="Remove all of it.")
@json_option()
def copies(address: str, everything: bool, as_json: bool) -> None:
    """List what is kept of checkpoints from elsewhere (s3://…), or remove it; the next load fetches it
    again."""
    from loadkit.facts.stores.kept import drop_copy, kept_copies

    found = kept_copies()
    if address and everything:
        raise LoadkitError("copies was given --drop and --all: give one")
    chosen = found if everything else [copy for copy in found if address and copy.reference == address]
    if address and not chosen:
        raise LoadkitError(f"nothing is kept of {address!r}; `loadkit cache copies` shows what is")
    gone = [copy for copy in chosen if drop_copy(copy)]
    if as_json:
        print_json([msgspec.to_builtins(copy) for copy in (gone if chosen else found)])
        return
    for copy in chosen:
        said = "removed" if copy in gone else "being fetched by another process, and left:"
        click.echo(f"{said} {copy.reference or copy.folder}, {size(copy.bytes)}")
    if not chosen:
        for copy in found:
            click.echo(f"{size(copy.bytes)}  {copy.reference or 'nothing whole'}  {copy.folder}")
        click.echo(f"{size(sum(copy.bytes for copy in found))} of checkpoints from elsewhere")


def _chosen(entries: Entries, key: str) -> list[Entry]:
    found = _beginning(entries, key)
    if key and not found:
        raise LoadkitError(f"no entry's key begins with {key!r}; `loadkit cache list` shows them")
    return found


def _beginning(entries: Entries, key: str) -> list[Entry]:
    return [e for e in entries if e.record.key.startswith(key)]


def _plain(entry: Entry) -> dict[str, Any]:
    return {
        "key": entry.record.key,
        "folder": entry.folder,
        "bytes": entry.bytes,
        "created": entry.record.created,
        "used": entry.used,
        "about": entry.record.about,
    }


def _print(found: list[Entry]) -> None:
    from loadkit.cli.terminal import plain_table, show

    table = plain_table()
    for column in ("key", "size", "made", "used", "source"):
        own = {"min_width": SOURCE} if column == "source" else {"no_wrap": column in ("key", "size")}
        table.add_column(column, overflow="fold", **own)
    for entry in found:
        about = entry.record.about
        at = f" at {about['commit'][:12]}" if about.get("commit") else ""
        table.add_row(
            entry.record.key[:12],
            size(entry.bytes),
            f"{span(entry.age)} ago",
            f"{span(time.time() - entry.used)} ago",
            f"{about.get('source', '')}{at}",
        )
    show(table)
