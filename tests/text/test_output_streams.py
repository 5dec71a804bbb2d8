"""Output that can't be written, or not as it is: nothing fails over it."""

from __future__ import annotations

import ast
import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import loadkit
from loadkit.text.output_streams import SPELT, Forgiving, forgiving_output

COMMAND = [sys.executable, "-c", "from loadkit.cli.main import main; main()"]
FULL = Path("/dev/full")
ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize(
    ("encoding", "written"),
    [("utf-8", "a → b … ✓ 日"), ("ascii", "a -> b ... ok \\u65e5"), ("cp1252", "a -> b ... ok \\u65e5")],
)
def test_symbols_degrade(encoding: str, written: str) -> None:
    under = io.BytesIO()
    stream = Forgiving(io.TextIOWrapper(under, encoding=encoding))
    print("a → b … ✓ 日", end="", file=stream)
    stream.flush()
    assert under.getvalue().decode(encoding) == written
    assert stream.lost == ""


def test_bytes_are_text() -> None:
    under = io.BytesIO()
    stream = Forgiving(io.TextIOWrapper(under, encoding="ascii"), as_text=True)
    stream.write("a → b".encode())
    stream.flush()
    assert under.getvalue() == b"a -> b"
    with pytest.raises(TypeError):  # click takes a stream for one of bytes that takes none of them
        stream.write(b"")


def test_every_symbol_that_is_printed_is_spelt_otherwise() -> None:
    """A new one would come out as \\u258f where the terminal knows no Unicode."""
    written: dict[str, str] = {}
    for path in [*(ROOT / "loadkit").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]:
        if "testing" in path.parts:  # writes checkpoints in many languages
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        unprinted = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in unprinted:
                written |= dict.fromkeys(node.value, str(path))
    for path in (ROOT / "loadkit" / "cli" / "explanations").glob("*.toml"):
        written |= dict.fromkeys(path.read_text(encoding="utf-8"), str(path))
    assert {s: path for s, path in written.items() if not s.isascii() and ord(s) not in SPELT} == {}


def test_a_closed_stream_loses_what_is_written() -> None:
    under = io.StringIO()
    under.close()
    stream = Forgiving(under)
    print("lost", file=stream)
    stream.flush()
    assert "closed" in stream.lost


def test_streams_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    own = io.StringIO()
    monkeypatch.setattr(sys, "stdout", own)
    with forgiving_output():
        with forgiving_output():
            assert isinstance(sys.stdout, Forgiving)
        print("…")
    assert sys.stdout is own
    assert own.getvalue() == "…\n"
    monkeypatch.setattr(sys, "stdout", None)  # as under pythonw, or closed by the shell
    with forgiving_output():
        assert sys.stdout is None
        print("nowhere")


def test_a_load_does_not_depend_on_who_reads(
    tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Neither progress that is printed in words with symbols, nor transformers' own bars."""
    for name in ("stdout", "stderr"):
        # without a buffer, which would hold back what can't be written
        under = FULL.open("wb", buffering=0) if FULL.exists() else (tmp_path / name).open("wb", buffering=0)
        monkeypatch.setattr(sys, name, io.TextIOWrapper(under, encoding="ascii", write_through=True))  # type: ignore[arg-type]
    said: list[str] = []

    def progress(text: str) -> None:
        print(f"… {text}", flush=True)
        print(f"… {text}", flush=True, file=sys.stderr)
        said.append(text)

    assert loadkit.load(tiny("mistral"), progress=progress).model is not None
    assert said
    streams = sys.stdout, sys.stderr
    monkeypatch.undo()
    for stream in streams:
        with contextlib.suppress(OSError):
            stream.close()


def run(*arguments: object, **how: object) -> subprocess.CompletedProcess[bytes]:
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **how}
    return subprocess.run([*COMMAND, *map(str, arguments)], **given)  # type: ignore[call-overload, no-any-return]


def test_commands_in_other_encodings(tiny: Callable[..., Path]) -> None:
    for encoding in ("ascii", "cp1252"):
        done = run(
            "plan", tiny("mistral"), "-p", "qlora", "--why", env={**os.environ, "PYTHONIOENCODING": encoding}
        )
        assert done.returncode == 0, done.stderr
        assert b"k-bit preparation -> gradient checkpointing" in done.stdout


@pytest.mark.skipif(not FULL.exists(), reason="there is no disk that is always full")
def test_commands_on_a_full_disk(tiny: Callable[..., Path], tmp_path: Path) -> None:
    with FULL.open("w") as full:
        done = run("plan", tiny("mistral"), "-o", tmp_path / "plan.json", stdout=full, stderr=full)
        assert done.returncode == 0
        assert loadkit.Plan.from_json((tmp_path / "plan.json").read_text())
        done = run("plan", tiny("mistral"), "--json", stdout=full)
    assert done.returncode == 4  # half of the JSON would be worse than an error
    assert b"the JSON couldn't be written" in done.stderr
    assert b"Traceback" not in done.stderr
