"""The table of Hub errors: its rows are exceptions that there are, and every exception finds its row."""

from __future__ import annotations

import builtins
import sys
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import errors

from loadkit.facts.hub.problems import CACHE_ERROR, CUT_OFF, ROWS, hub_problem

httpx = sys.modules[errors.HfHubHTTPError.__bases__[0].__module__.partition(".")[0]]
"""The module of huggingface_hub's HTTP client: httpx2 from 2.0 on, httpx before."""


def test_every_class_of_the_table_exists() -> None:
    named = {sign for row in ROWS for sign in row.signs if not sign.startswith("HTTP ")}
    homes = (errors, httpx, builtins)
    assert {n for n in named if not any(hasattr(home, n) for home in homes)} == {CACHE_ERROR, CUT_OFF}


def test_huggingface_hub_still_says_so_of_a_file_that_is_cut_off() -> None:
    source = Path(huggingface_hub.__file__).with_name("file_download.py").read_text(encoding="utf-8")
    assert f'"{CUT_OFF}' in source


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (httpx.ReadTimeout("secret"), "hub-unreachable", "didn't answer in time"),
        (httpx.ConnectError("secret"), "hub-unreachable", "(ConnectError)"),
        (httpx.LocalProtocolError("secret"), "bad-token", "can't be sent"),
        (errors.OfflineModeIsEnabled("secret"), "offline-not-cached", "may not be asked"),
        (errors.LocalTokenNotFoundError("secret"), "bad-token", "nobody is logged in"),
        (OSError(28, "No space left on device", "a.bin"), "cache-unwritable", "device: 'a.bin'"),
        (OSError(f"{CUT_OFF}: secret"), "damaged-download", "another length"),
        (OSError("secret"), "hub-unreachable", "doesn't understand (OSError)"),
        (KeyError("secret"), "hub-unreachable", "doesn't understand (KeyError)"),
    ],
)
def test_an_exception_finds_its_row(error: Exception, code: str, words: str) -> None:
    problem = hub_problem(error, "owner/tiny", "v1")
    assert (problem.stage, problem.plugin, problem.code) == ("checkpoint", "loadkit", code)
    assert words in problem.message
    assert "'owner/tiny'" in problem.message
    assert "secret" not in repr(problem)
    assert not set("{}") & set(problem.message + problem.remedy)


@pytest.mark.parametrize(
    ("kind", "status", "code", "words"),
    [
        (errors.GatedRepoError, 403, "gated", "(HTTP 403)"),
        (errors.RepositoryNotFoundError, 404, "no-such-repository", "for this token (HTTP 404)"),
        (errors.RevisionNotFoundError, 404, "no-such-revision", "has no revision 'v1'"),
        (errors.RemoteEntryNotFoundError, 404, "hub-unreachable", "lists a file"),
        (errors.HfHubHTTPError, 401, "bad-token", "refused the token"),
        (errors.HfHubHTTPError, 451, "no-access", "the token that was sent"),
        (errors.HfHubHTTPError, 429, "hub-unreachable", "(HTTP 429), and asks to wait 7 s"),
        (errors.HfHubHTTPError, 502, "hub-unreachable", "answered with HTTP 502, and asks to wait 7 s"),
    ],
)
def test_an_answer_finds_its_row(
    kind: type[errors.HfHubHTTPError], status: int, code: str, words: str
) -> None:
    request = httpx.Request("GET", "https://hub.example/x", headers={"authorization": "Bearer secret"})
    response = httpx.Response(status, request=request, headers={"retry-after": "7"})
    problem = hub_problem(kind("secret", response=response), "owner/tiny", "v1")
    assert problem.code == code
    assert words in problem.message
    assert "secret" not in repr(problem)


def test_why_the_cache_was_asked_counts() -> None:
    error = errors.LocalEntryNotFoundError("not cached")
    assert hub_problem(error, "owner/tiny", "").code == "offline-not-cached"
    error.__cause__ = httpx.ConnectTimeout("slow")
    assert "didn't answer in time" in hub_problem(error, "owner/tiny", "").message
