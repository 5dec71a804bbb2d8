"""What filesystems raise, as what loadkit tells: without the words of libraries, which may quote a key."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from loadkit.plugins import SourceError

__all__ = ["explained"]

REFUSED = {
    *("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound"),
    *("TokenRetrievalError", "SSOTokenLoadError", "UnauthorizedSSOTokenError", "DefaultCredentialsError", "RefreshError"),
}  # fmt: skip
"""Names of what botocore and google-auth raise where they have no credentials, or bad ones."""

UNREACHABLE = {
    *("EndpointConnectionError", "ConnectionClosedError", "ConnectTimeoutError", "ReadTimeoutError", "HTTPClientError"),
    *("ClientConnectorError", "ClientConnectionError", "ServerTimeoutError", "ServerDisconnectedError", "ClientPayloadError"),
    *("ConnectionError", "TimeoutError", "FSTimeoutError", "IncompleteReadError", "ResponseStreamingError", "gaierror"),
}  # fmt: skip
"""Names of what botocore, aiohttp and Python raise where nobody answers, or the answer breaks off."""


@contextmanager
def explained(reference: str, name: str = "") -> Iterator[None]:
    """Raise a SourceError in place of what a filesystem raises; an ImportError goes through.

    Parameters:
        reference: the checkpoint's address.
        name: the file that is read; "" while it is opened.
    """
    what = f"{name} of {reference!r}" if name else repr(reference)
    try:
        yield
    except (SourceError, ImportError):
        raise
    except Exception as error:
        names = {kind.__name__ for each in _chain(error) for kind in type(each).__mro__}
        status = next((s for each in _chain(error) if (s := _status(each))), 0)
        if isinstance(error, PermissionError) or names & REFUSED or status in (401, 403):
            raise SourceError(
                f"{what} can't be read: access is refused, or there are no credentials ({type(error).__name__})",
                "give credentials as the store's own tools take them (AWS_PROFILE, AWS_ACCESS_KEY_ID, GOOGLE_APPLICATION_CREDENTIALS, "
                "an instance's role), and check that they may list and read there",
                "no-access",
            ) from error
        if names & UNREACHABLE or status in (429, 500, 502, 503, 504):
            # While a file is read it is worth another attempt; while it is opened a copy stands in.
            raise SourceError(
                f"{what} can't be asked for: no answer, or it broke off ({type(error).__name__})",
                "check the network and the endpoint, and try again; what has arrived is kept",
                "source-failed" if name else "source-unreachable",
            ) from error
        if isinstance(error, FileNotFoundError) or status == 404:
            raise SourceError(
                f"there is no {what}",
                "check the address: it names the folder that config.json lies in",
                "no-such-source",
            ) from error
        raise SourceError(
            f"{what} can't be read: {type(error).__name__}",
            "check the address, and that fsspec's own tools can read it",
        ) from error


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _status(error: BaseException) -> int:
    """The HTTP status of an answer that an exception carries; 0 for others."""
    response = getattr(error, "response", None)
    about = response.get("ResponseMetadata", {}) if isinstance(response, dict) else {}
    found = about.get("HTTPStatusCode") or getattr(error, "status", 0) or getattr(error, "code", 0)
    return int(found) if found is not None and str(found).isdecimal() else 0
