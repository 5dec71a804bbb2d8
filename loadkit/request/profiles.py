"""Profiles: named sets of options, kept as data files."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from loadkit.errors import Problem
from loadkit.text.suggest import did_you_mean

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
        The options in force, and what is wrong with the profile.
    """
    chain: list[Profile] = []
    followed: list[str] = []
    reference, asked_by = name, "you"
    while reference:
        if reference in followed:
            loop = " extends ".join(repr(r) for r in [*followed, reference])
            return {}, [_problem("profile-loop", f"profile {loop}, which leads back", "break the loop")]
        followed.append(reference)
        profile, problem = _one(reference, known, asked_by=asked_by)
        if profile is None:
            return {}, [problem] if problem is not None else []
        chain.insert(0, profile)
        reference, asked_by = profile.extends, f"profile {reference!r}"
    return {key: value for p in chain for key, value in p.options.items()}, []


def _one(
    name: str, known: Mapping[str, tuple[str, Profile]], *, asked_by: str
) -> tuple[Profile | None, Problem | None]:
    if name in known:
        return known[name][1], None
    if not name.endswith(".toml"):
        message = f"{asked_by} asked for profile {name!r}, which nobody provides{did_you_mean(name, known)}"
        names = ", ".join(sorted(known)) or "none: the plugins that bring profiles are blocked or missing"
        remedy = f"choose one of {names}, or give the path of a .toml file"
        return None, _problem("unknown-profile", message, remedy)
    try:
        return read_profile(Path(name).expanduser()), None
    except OSError as error:
        reason = error.strerror or str(error)
    except (ValueError, msgspec.ValidationError) as error:
        reason = str(error)
    return None, _problem(
        "bad-profile",
        f"{asked_by} asked for the profile file {name!r}: {reason}",
        "a profile file is TOML with `description`, optionally `extends`, and a table `[options]`",
    )
