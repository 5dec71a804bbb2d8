"""What went wrong with the Hub, as problems with a remedy: one table, and a default.

Exceptions' messages are left out on purpose: an HTTP library that refuses a header quotes it with the token.
"""

from __future__ import annotations

from typing import Any, NamedTuple
from urllib.parse import urlsplit

from loadkit.errors import Problem
from loadkit.facts.checkpoint.source import checkpoint_problem
from loadkit.facts.hub.retry import class_names, retry_after

__all__ = ["hub_host", "hub_problem"]

CACHE_ERROR = "an error of the system"
CUT_OFF = "Consistency check failed"
"""How huggingface_hub 2.4 begins what it says of a file of another length than was promised."""


class Row(NamedTuple):
    """What an exception means that shows any of the signs; `_words` has what the texts are filled in with."""

    signs: tuple[str, ...]
    code: str
    message: str
    remedy: str


def _bad_token(*signs: str, message: str) -> Row:
    remedy = "log in again with `hf auth login`, correct HF_TOKEN, or pass another token=…"
    return Row(signs, code="bad-token", message=message, remedy=remedy)


def _unreachable(*signs: str, found: str) -> Row:
    remedy = "check the network, the proxy and HF_ENDPOINT, and try again later; what is cached loads with HF_HUB_OFFLINE=1"
    message = "{repository!r} can't be asked for: " + found
    return Row(signs, code="hub-unreachable", message=message, remedy=remedy)


ROWS = (
    Row(
        ("GatedRepoError",),
        code="gated",
        message="{repository!r} is gated, and {no_access} (HTTP {status})",
        remedy="accept the licence on {host}/{repository}, then log in with `hf auth login` or pass token=…",
    ),
    Row(
        ("RepositoryNotFoundError",),
        code="no-such-repository",
        message="{host} has no model repository {repository!r} for {user} (HTTP {status}); a private one looks the same to "
        "those without access",
        remedy="check the id (most are 'owner/name'){log_in}",
    ),
    Row(
        ("RevisionNotFoundError",),
        code="no-such-revision",
        message="{repository!r} has no revision {revision!r} on {host}",
        remedy="give a branch, a tag or a commit of that repository, or leave the revision out",
    ),
    _unreachable(
        "RemoteEntryNotFoundError", found="{host} lists a file that it doesn't serve (HTTP {status})"
    ),
    _bad_token("HTTP 401", message="{host} refused the token for {repository!r} (HTTP 401)"),
    Row(
        ("HTTP 403", "HTTP 451"),
        code="no-access",
        message="{host} refuses access to {repository!r} (HTTP {status}); {token}",
        remedy="use a token with read access to it; a repository that was disabled can't be loaded at all",
    ),
    _unreachable("HTTP 429", found="{host} limits the rate of requests (HTTP 429){wait}"),
    _unreachable("HfHubHTTPError", found="{host} answered with HTTP {status}{wait}"),
    Row(
        ("OfflineModeIsEnabled", "LocalEntryNotFoundError"),
        code="offline-not-cached",
        message="a file of {repository!r} isn't in the cache, and the Hub may not be asked",
        remedy="fetch it while online (`hf download {repository}`), or unset HF_HUB_OFFLINE; of a gated one accept the "
        "licence on {host}/{repository} before, and log in with `hf auth login`",
    ),
    _bad_token(
        "LocalTokenNotFoundError",
        message="token=True asks for the stored token to load {repository!r}, but nobody is logged in",
    ),
    _bad_token(
        "LocalProtocolError",
        "UnicodeEncodeError",
        message="the token for {repository!r} holds characters that can't be sent, such as a line break",
    ),
    _unreachable("TimeoutException", found="{host} didn't answer in time"),
    _unreachable("TransportError", found="no connection to {host} ({error})"),
    Row(
        (CACHE_ERROR,),
        code="cache-unwritable",
        message="a file of {repository!r} can't be written to the cache: {reason}: {path!r}",
        remedy="free some disk space, or point HF_HOME or cache_dir to a folder that you may write to",
    ),
    Row(
        (CUT_OFF,),
        code="damaged-download",
        message="a file of {repository!r} didn't arrive whole from {host}: it has another length than was promised",
        remedy="load again; if it comes again, a proxy or mirror (HF_ENDPOINT) cuts it off",
    ),
)
"""The first row with a sign of the exception counts: a class, an HTTP status, or one of those above."""

OTHERWISE = _unreachable(found="{host} answered in a way that huggingface_hub doesn't understand ({error})")


def hub_host() -> str:
    """Host and port of the Hub that huggingface_hub asks (HF_ENDPOINT), without credentials."""
    from huggingface_hub import constants

    return urlsplit(constants.ENDPOINT).netloc.rpartition("@")[2]


def hub_problem(error: BaseException, repository: str, revision: str) -> Problem:
    """Turn what huggingface_hub raised into a problem; `revision` is the one that was asked for."""
    if error.__cause__ is not None and "LocalEntryNotFoundError" in class_names(error):
        return hub_problem(error.__cause__, repository, revision)
    signs = _signs(error)
    row = next((row for row in ROWS if not signs.isdisjoint(row.signs)), OTHERWISE)
    words = _words(error, repository, revision)
    return checkpoint_problem(row.code, row.message.format_map(words), row.remedy.format_map(words))


def _signs(error: BaseException) -> set[str]:
    signs = class_names(error)
    if (response := _response(error)) is not None:
        signs.add(f"HTTP {response.status_code}")
    elif isinstance(error, OSError) and error.errno is not None:
        signs.add(CACHE_ERROR)
    elif isinstance(error, OSError) and str(error).startswith(CUT_OFF):
        signs.add(CUT_OFF)
    return signs


def _words(error: BaseException, repository: str, revision: str) -> dict[str, Any]:
    response = _response(error)
    sent = response is not None and "authorization" in response.request.headers
    asked = retry_after(error)
    return {
        "repository": repository,
        "revision": revision,
        "host": hub_host(),
        "error": type(error).__name__,
        "reason": getattr(error, "strerror", None),
        "path": getattr(error, "filename", None),
        "status": getattr(response, "status_code", None),
        "wait": f", and asks to wait {asked:.0f} s" if asked else "",
        "token": "the token that was sent" if sent else "no token was sent",
        "no_access": "the token that was sent has no access to it" if sent else "no token was sent",
        "user": "this token" if sent else "anonymous users",
        "log_in": "" if sent else "; for a private repository, log in with `hf auth login` or pass token=…",
    }


def _response(error: BaseException) -> Any:
    return getattr(error, "response", None) if "HfHubHTTPError" in class_names(error) else None
