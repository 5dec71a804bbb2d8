"""Profiles: named sets of options, kept as data files."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from loadkit.errors import Problem
from loadkit.text.kinds import kind_of
from loadkit.text.suggest import did_you_mean, nearest_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["Profile", "find_profile", "read_profile", "read_profiles"]

_problem = partial(Problem, "request", "loadkit")


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A named set of options, weaker than what the caller gives, stronger than what plugins claim.

    Parameters:
        name: how it is asked for.
        description: what it is for, in a sentence.
        extends: the profile whose options it starts from; "" for none.
        options: option to value.
    """

    name: str
    description: str
    extends: str = ""
    options: dict[str, Any] = {}


class _File(msgspec.Struct, forbid_unknown_fields=True):
    description: str
    extends: str = ""
    options: dict[str, Any] = {}


_FIELDS: Mapping[str, type] = {"description": str, "extends": str, "options": dict}
"""What a file may have, and of which type."""

_LAYOUT = "a profile file is TOML with `description`, optionally `extends`, and a table `[options]`"


def read_profile(path: Path) -> Profile:
    """Read a profile from a TOML file; the file's name without `.toml` is the profile's.

    The file has `description`, optionally `extends`, and a table `[options]`.

    Raises:
        OSError: the file can't be read.
        ValueError: it isn't TOML.
        msgspec.ValidationError: it has other fields.
    """
    content = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), _File)
    return Profile(name=path.stem, **msgspec.structs.asdict(content))


def read_profiles(folder: Path) -> list[Profile]:
    """Read every profile of a folder, sorted by name."""
    return [read_profile(path) for path in sorted(folder.glob("*.toml"))]


def find_profile(name: str, known: Mapping[str, tuple[str, Profile]]) -> tuple[dict[str, Any], list[Problem]]:
    """Collect a profile's options, those of the profiles it extends first.

    Parameters:
        name: a known profile's name, or the path of a profile file (it ends in ".toml").
        known: name to (plugin, profile).

    Returns:
        The options in force, and everything that is wrong with the profile; of a faulty file the options that
        could be read.
    """
    problems: list[Problem] = []
    chain: list[Profile] = []
    followed: list[str] = []
    reference, asked_by = name, "you"
    while reference:
        if reference in followed:
            loop = " extends ".join(repr(r) for r in [*followed, reference])
            message = f"profile {loop}, which leads back"
            return {}, [*problems, _problem("profile-loop", message, "break the loop")]
        followed.append(reference)
        profile, found = _one(reference, known, asked_by=asked_by)
        problems += found
        if profile is None:
            break
        chain.insert(0, profile)
        reference, asked_by = profile.extends, f"profile {reference!r}"
    return {key: value for p in chain for key, value in p.options.items()}, problems


def _one(
    name: str, known: Mapping[str, tuple[str, Profile]], *, asked_by: str
) -> tuple[Profile | None, list[Problem]]:
    if name in known:
        return known[name][1], []
    if not name.endswith(".toml"):
        message = f"{asked_by} asked for profile {name!r}, which nobody provides{did_you_mean(name, known)}"
        names = ", ".join(sorted(known)) or "none: the plugins that bring profiles are blocked or missing"
        remedy = f"choose one of {names}, or give the path of a .toml file"
        return None, [_problem("unknown-profile", message, remedy)]
    bad = partial(_problem, "bad-profile")
    asked, remedy = f"{asked_by} asked for the profile file {name!r}", _LAYOUT
    path = Path(name).expanduser()
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        hint = (
            did_you_mean(path.stem, {path.stem} & {*known}) or _beside(path) or did_you_mean(path.stem, known)
        )
        return None, [
            bad(f"{asked}: {error.strerror or error}{hint}", "check the path, or give a profile's name")
        ]
    except ValueError as error:
        return None, [bad(f"{asked}: {error}", remedy)]
    faults = list(_faults(content))
    fit = {field: kind for field, kind in _FIELDS.items() if isinstance(content.get(field), kind)}
    profile = Profile(name=path.stem, **{"description": "", **{field: content[field] for field in fit}})
    return profile, [bad(f"{asked}: {fault}", remedy) for fault in faults]


def _beside(path: Path) -> str:
    """A hint at the profile file whose name is most like that of one that isn't there."""
    try:
        near = nearest_name(path.stem, [file.stem for file in path.parent.glob("*.toml")])
    except OSError:
        return ""
    return f" (did you mean {str(path.with_stem(near))!r}?)" if near else ""


def _faults(content: Mapping[str, Any]) -> Iterator[str]:
    """Everything that keeps the content of a file from being a profile."""
    for name, value in content.items():
        if name not in _FIELDS:
            hint = did_you_mean(name, _FIELDS) or "; options belong into the table [options]"
            yield f"it has {name!r}, which no profile has{hint}"
        elif not isinstance(value, _FIELDS[name]):
            takes = "a table" if name == "options" else "a text"
            yield f"its {name!r} is {kind_of(value)}; it takes {takes}"
    if "description" not in content:
        yield "it has no 'description', a sentence that says what it is for"
