"""What lies in a folder and may not be read: links out of it, and what is no file."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from loadkit.errors import Problem
from loadkit.facts.checkpoint.source import checkpoint_problem

__all__ = ["link_outside", "refuse_entries"]

NEVER_READ = (".md", ".rst", ".log", ".png", ".jpg", ".jpeg", ".svg", ".pdf", ".csv", ".html", ".lock")
"""Ends of names that no loader reads; what tokenizers and processors read, they choose the names of."""

READ_INSIDE = ("template", "tokenizer", "processor", "speaker")
"""Parts of the names of folders that they read: templates, further tokenizers, a voice's arrays."""

MUST_BE_FILES = (
    *(
        "config.json",
        "generation_config.json",
        "adapter_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ),
    *("special_tokens_map.json", "processor_config.json", "preprocessor_config.json", "chat_template.json"),
    *("chat_template.jinja", "added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model"),
)

KINDS = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def refuse_entries(root: str, inside: str = "") -> Iterator[Problem]:
    """A problem for everything beside the configs, and in the folders of templates and tokenizers, that a
    loader would follow out of the folder, or wait at for ever.

    Parameters:
        root: the checkpoint's folder.
        inside: the path of a folder in it, which ends with "/"; "" for itself.
    """
    try:
        with os.scandir(os.path.join(root, inside)) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError:
        return  # what is needed of it is reported when it is read
    for entry in entries:
        name = f"{inside}{entry.name}"
        if entry.name.startswith(".") or entry.name.lower().endswith(NEVER_READ):
            continue
        try:
            entry.name.encode()
        except UnicodeEncodeError:
            if inside:
                yield _unreadable_name(root, name)
            continue
        try:
            is_folder = entry.is_dir()
        except OSError:  # a link to itself: it leads nowhere
            continue
        entered = is_folder and any(part in entry.name.lower() for part in READ_INSIDE)
        if entry.is_symlink() and (entered or not is_folder) and (outside := link_outside(root, name)):
            yield outside
        elif is_folder and entry.name in MUST_BE_FILES:
            yield _no_file(root, name, "a folder")
        elif entered and inside.count("/") < 2:
            yield from refuse_entries(root, f"{name}/")
        elif kind := _kind(entry):
            yield _no_file(root, name, kind)


def link_outside(root: str, name: str) -> Problem | None:
    """The problem of a link that leads out of the folder, to files that its maker has no right to name.

    The Hub cache is made of such links: a snapshot's files lead to the blobs of the same repository.
    """
    path = os.path.join(root, name)
    real, real_root = os.path.realpath(path), os.path.realpath(root)
    if real == real_root or real.startswith(real_root.rstrip(os.sep) + os.sep):
        return None
    repository, found, _ = real_root.partition(f"{os.sep}snapshots{os.sep}")
    if found and real.startswith(f"{repository}{os.sep}blobs{os.sep}"):
        return None
    message = f"{path!r} is a link that leads out of the folder, to {real!r}"
    remedy = f"copy the file into {root!r}, if you mean it to be read"
    return checkpoint_problem("link-outside", message, remedy)


def _kind(entry: os.DirEntry[str]) -> str:
    """What is neither a file nor a folder; "" for both, and for a link that leads nowhere."""
    try:
        mode = entry.stat().st_mode
    except OSError:
        return ""
    return next((kind for test, kind in KINDS if test(mode)), "")


def _no_file(root: str, name: str, kind: str) -> Problem:
    message = f"{os.path.join(root, name)!r} is {kind}, where a file belongs"
    remedy = "restore the file from where the checkpoint came from, or remove it"
    return checkpoint_problem("not-a-file", message, remedy)


def _unreadable_name(root: str, name: str) -> Problem:
    message = f"{os.path.join(root, name)!r} has a name that isn't UTF-8"
    remedy = "rename it, or remove it: it would be read as a chat template"
    return checkpoint_problem("not-utf8-name", message, remedy)
