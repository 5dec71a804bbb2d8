"""What went wrong with the Hub, as problems with a remedy. No token gets into a message.

Messages of exceptions are left out on purpose: an HTTP library that refuses a header quotes it, token included.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from loadkit.errors import Problem
from loadkit.facts.checkpoint.source import checkpoint_problem
from loadkit.facts.hub.retry import THROTTLED, wished_wait

__all__ = ["hub_host", "hub_problem"]


def hub_host() -> str:
    """Host and port of the Hub that huggingface_hub asks (HF_ENDPOINT), without credentials."""
    from huggingface_hub import constants

    return urlsplit(constants.ENDPOINT).netloc.rpartition("@")[2]


def hub_problem(error: BaseException, repository: str, revision: str) -> Problem:
    """Turn what huggingface_hub raised into a problem.

    Parameters:
        error: the exception.
        repository: the repository's id.
        revision: the revision asked for; "" for the default branch.
    """
    import httpx2
    from huggingface_hub import errors

    host = hub_host()
    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        return hub_problem(error.__cause__, repository, revision)
    if isinstance(error, errors.HfHubHTTPError):
        return _answered(error, repository, revision, host)
    if isinstance(error, (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError)):
        return checkpoint_problem(
            "offline-not-cached",
            f"a file of {repository!r} isn't in the cache, and the Hub may not be asked",
            f"fetch it while online (`hf download {repository}`), or unset HF_HUB_OFFLINE",
        )
    if isinstance(error, errors.LocalTokenNotFoundError):
        return _bad_token(
            f"token=True asks for the stored token to load {repository!r}, but nobody is logged in"
        )
    if isinstance(error, (httpx2.LocalProtocolError, UnicodeEncodeError)):
        return _bad_token(
            f"the token for {repository!r} holds characters that can't be sent, such as a line break"
        )
    if isinstance(error, httpx2.TimeoutException):
        return _unreachable(repository, f"{host} didn't answer in time")
    if isinstance(error, httpx2.TransportError):
        return _unreachable(repository, f"no connection to {host} ({type(error).__name__})")
    if isinstance(error, OSError) and error.errno is not None:
        return checkpoint_problem(
            "cache-unwritable",
            f"a file of {repository!r} can't be written to the cache: {error.strerror}: {error.filename!r}",
            "free some disk space, or point HF_HOME or cache_dir to a folder that you may write to",
        )
    if isinstance(error, OSError) and str(error).startswith("Consistency check failed"):
        return checkpoint_problem(
            "damaged-download",
            f"a file of {repository!r} didn't arrive whole from {host}: it has another length than was promised",
            "load again; if it comes again, a proxy or mirror (HF_ENDPOINT) cuts it off",
        )
    return _unreachable(
        repository,
        f"{host} answered in a way that huggingface_hub doesn't understand ({type(error).__name__})",
    )


def _answered(error: object, repository: str, revision: str, host: str) -> Problem:
    from huggingface_hub import errors

    assert isinstance(error, errors.HfHubHTTPError)
    status = error.response.status_code
    sent = "authorization" in error.response.request.headers
    with_token = "the token that was sent" if sent else "no token was sent"
    if isinstance(error, errors.GatedRepoError):
        return checkpoint_problem(
            "gated",
            f"{repository!r} is gated, and "
            + ("the token that was sent has no access to it" if sent else "no token was sent")
            + f" (HTTP {status})",
            f"accept the conditions on {host}/{repository}, then log in with `hf auth login` or pass token=…",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return checkpoint_problem(
            "no-such-repository",
            f"{host} has no model repository {repository!r} for {'this token' if sent else 'anonymous users'} "
            f"(HTTP {status}); a private one looks the same to those without access",
            "check the id (most are 'owner/name')"
            + ("" if sent else "; for a private repository, log in with `hf auth login` or pass token=…"),
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return checkpoint_problem(
            "no-such-revision",
            f"{repository!r} has no revision {revision!r} on {host}",
            "give a branch, a tag or a commit of that repository, or leave the revision out",
        )
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return _unreachable(repository, f"{host} lists a file that it doesn't serve (HTTP {status})")
    if status == 401:
        return _bad_token(f"{host} refused the token for {repository!r} (HTTP 401)")
    if status in (403, 451):
        return checkpoint_problem(
            "no-access",
            f"{host} refuses access to {repository!r} (HTTP {status}); {with_token}",
            "use a token with read access to it; a repository that was disabled can't be loaded at all",
        )
    wished = wished_wait(error)
    wait = f", and asks to wait {wished:.0f} s" if wished else ""
    if status == THROTTLED:
        return _unreachable(repository, f"{host} limits the rate of requests (HTTP 429){wait}")
    return _unreachable(repository, f"{host} answered with HTTP {status}{wait}")


def _bad_token(message: str) -> Problem:
    return checkpoint_problem(
        "bad-token", message, "log in again with `hf auth login`, correct HF_TOKEN, or pass another token=…"
    )


def _unreachable(repository: str, found: str) -> Problem:
    return checkpoint_problem(
        "hub-unreachable",
        f"{repository!r} can't be asked for: {found}",
        "check the network, the proxy and HF_ENDPOINT, and try again later; what is cached loads with HF_HUB_OFFLINE=1",
    )
