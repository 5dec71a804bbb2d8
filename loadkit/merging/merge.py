"""Merge: plan as for a load, build the model without its weights, write shard by shard, and prove it."""

from __future__ import annotations

import mmap
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from loadkit.errors import AuditError, Finding, LoadError, LoadkitError, PlanError
from loadkit.facts.load_facts import fingerprint_of
from loadkit.hooks.manager import PluginManager, default_manager
from loadkit.manifest.manifest import (
    FileProof,
    Manifest,
    files_of,
    library_versions,
    proof_of,
    python_version,
)
from loadkit.merging.beside_weights import copy, edited, index_of, write_json
from loadkit.merging.destination import check_destination, made_whole, room_for
from loadkit.merging.merged import MANIFEST, Merged
from loadkit.merging.outline import OutFile
from loadkit.merging.preparation import Prepared, prepare
from loadkit.merging.problems import merge_problem, refuse
from loadkit.merging.proof import prove
from loadkit.merging.writer import Writer
from loadkit.planning.pipeline import Planned, plan_load
from loadkit.schema.request import Progress, Token

__all__ = ["merge"]

WORKERS = 4
CHUNK = 1 << 24
TOO_LARGE = "does-not-fit"

Wrote = Callable[[int, int], None]
"""Called with the bytes of weights that are written, and those that there will be."""


def merge(
    adapter: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    dtype: str | None = None,
    sha256: bool = False,
    token: Token = None,
    plugin_manager: PluginManager | None = None,
    progress: Progress | None = None,
    wrote: Wrote | None = None,
    **options: Any,
) -> Merged:
    """Work an adapter into its base on the disk, a piece of a tensor at a time: the model is never in memory.

    The arithmetic is PEFT's own, in float32; the result is rounded once, to the dtype that each tensor is
    stored in. Every file is read back: what the adapter doesn't move is the base's bit for bit. What can't be
    merged so is refused before anything is written, and a folder that isn't whole never has the name.

    Parameters:
        adapter: the adapter's folder or Hub id.
        out: the folder to make; an empty one may be there.
        base: the model to merge into; by default the one that the adapter names.
        dtype: the dtype that floating-point tensors get ("bfloat16"); by default each keeps its own.
        sha256: whether the manifest has SHA-256 of the weight files too, which takes a second a gigabyte; it
            has XXH3 of those else.
        token: the Hub token, as huggingface_hub takes it.
        plugin_manager: the plugins to use; all installed ones by default.
        progress: called with a short sentence as each step begins.
        wrote: called now and then with the bytes written, and with those in all.
        **options: what says more of the two, as `load` takes it: `revision`, `adapter_revision`, `cache_dir`,
            `trust_remote_code`, `check_adapter_base` and others.

    Returns:
        Where it lies, and what became of every tensor.

    Raises:
        PlanError: the request can't be met, or it can't be merged so; nothing was written.
        LoadError: reading or writing failed; nothing stands under the name.
        AuditError: what was read back isn't what was to be written; nothing of it was kept.
    """
    manager, say, clock = plugin_manager or default_manager(), progress or (lambda _: None), _Clock()
    source = os.fspath(adapter)
    given = {name: value for name, value in {"dtype": dtype}.items() if value is not None}
    target = Path(os.path.abspath(os.path.expanduser(os.fspath(out))))
    refuse(source, check_destination(target, {}))
    with clock("plan"):
        about: dict[str, Any] = {"merge_adapter": True, **given, **options}
        about |= {} if base is None else {"adapter": source}
        plan, facts = _planned(
            source,
            source if base is None else base,
            about,
            token=token,
            plugin_manager=manager,
            progress=progress,
        )
        assert facts is not None
        prepared = prepare(
            plan, facts, source, manager, token, say, "" if dtype in (None, "auto") else plan.dtype
        )
    refuse(source, check_destination(target, prepared.sources))
    refuse(source, room_for(target, prepared.nbytes))
    with _disk(target), made_whole(target) as folder:
        hashed = partial(_hashed, sha256=sha256)
        written = _write(prepared, folder, say, wrote or (lambda *_: None), clock, source, hashed)
        if fingerprint_of(plan) != facts.fingerprint:
            raise LoadError(
                f"the files of {plan.checkpoint.location!r} changed while they were read\n    fix: merge again"
            )
        manifest = Manifest(
            plan=plan, files=written[0], libraries=library_versions(plan), python=python_version(), seconds=clock.seconds,
            written=written[1],
        )  # fmt: skip
        manifest.save(folder / MANIFEST)
        say("waiting for the disk")
    tensors = {tensor.name: tensor.how for file in prepared.outline for tensor in file.tensors}
    return Merged(
        folder=str(target),
        manifest=manifest,
        tensors=dict(tensors),
        weight_bytes=sum(tensor.nbytes for file in prepared.outline for tensor in file.tensors),
        left_out=prepared.left_out,
        changed=tuple(prepared.config_changes),
        seconds=clock.seconds,
    )


def _write(
    prepared: Prepared,
    folder: Path,
    say: Progress,
    wrote: Wrote,
    clock: _Clock,
    source: str,
    hashed: Callable[[Path], FileProof],
) -> tuple[dict[str, FileProof], dict[str, FileProof]]:
    """Write everything and read it back; the hashes of what was read and of what was written.

    While a file is written, the one before is read back, and what is read is hashed.
    """
    count = _Counter(sum(file.nbytes for file in prepared.outline), wrote)

    with clock("write"), _workers() as beside:
        writer = Writer(prepared.values, beside, count)
        read = {name: beside.submit(hashed, path) for name, path in files_of(prepared.plan).items()}
        proofs: dict[str, Future[FileProof]] = {}
        found: list[Future[list[Finding]]] = []
        for number, file in enumerate(prepared.outline, 1):
            say(f"writing {file.name} ({number} of {len(prepared.outline)})")
            sums = writer.write(file, folder / file.name)
            found.append(beside.submit(_proved, file, folder / file.name, sums, prepared))
            proofs[file.name] = beside.submit(hashed, folder / file.name)
            _stop_at_findings(source, [each for each in found if each.done()])
        for name, path in prepared.companions.items():
            copy(path, folder / name)
            if name in prepared.edits:
                content = path.read_text(encoding="utf-8")
                (folder / name).write_text(edited(content, prepared.edits[name]), encoding="utf-8")
            proofs[name] = beside.submit(proof_of, folder / name)
        if prepared.index_name:
            write_json(folder / prepared.index_name, index_of(prepared.outline, prepared.index_metadata))
            proofs[prepared.index_name] = beside.submit(proof_of, folder / prepared.index_name)
        with clock("read back"):
            say("reading back what was written")
            _stop_at_findings(source, found)
            return {n: p.result() for n, p in read.items()}, {
                n: p.result() for n, p in sorted(proofs.items())
            }


def _proved(file: OutFile, path: Path, sums: Mapping[str, str], prepared: Prepared) -> list[Finding]:
    return list(prove(file, path, sums, prepared.values))


def _stop_at_findings(source: str, proved: list[Future[list[Finding]]]) -> None:
    findings = [finding for each in proved for finding in each.result()]
    if findings:
        raise AuditError(source, findings, done="merged")


def _planned(source: str, model: Any, options: dict[str, Any], **about: Any) -> Planned:
    """The plan of a load that merges; whether it fits in memory doesn't matter, as nothing is loaded."""
    try:
        return plan_load(model, **about, **options)
    except PlanError as error:
        codes = {problem.code for problem in error.problems if problem.severity == "error"}
        if codes == {TOO_LARGE} and "check_memory" not in options:
            return _planned(source, model, {**options, "check_memory": False}, **about)
        if codes == {"lora-option-unused"} and "adapter" not in options:
            remedy = "give the adapter's folder or Hub id; --base names the model, if the adapter doesn't"
            refuse(
                source,
                [merge_problem("not-an-adapter", f"{source!r} is a whole model, and no adapter", remedy)],
            )
        raise PlanError(error.source, error.problems, doing="merge") from error.__cause__


@contextmanager
def _disk(out: Path) -> Iterator[None]:
    """An error of the disk says what was being written."""
    try:
        yield
    except LoadkitError:
        raise
    except OSError as error:
        raise LoadError(
            f"{str(out)!r} couldn't be written: {error.strerror or error}; nothing of it was kept\n"
            "    fix: make room there, or name a folder on another disk"
        ) from error


@contextmanager
def _workers() -> Iterator[ThreadPoolExecutor]:
    """As many threads as cores, at most four, each of which torch works alone in."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(
            min(WORKERS, cores), initializer=torch.set_num_threads, initargs=(1,)
        ) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)


def _hashed(path: Path, *, sha256: bool) -> FileProof:
    """A file's size and hash: weights have XXH3's, which takes no time beside reading them."""
    if sha256 or path.suffix != ".safetensors" or path.name.startswith("adapter_"):
        return proof_of(path)
    import xxhash

    digest = xxhash.xxh3_128()
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        for start in range(0, len(mapped), CHUNK):
            with memoryview(mapped)[start : start + CHUNK] as piece:
                digest.update(piece)
        return FileProof(size=len(mapped), xxh3=digest.hexdigest())


class _Counter:
    """Adds up what is written, from several threads, and tells now and then."""

    def __init__(self, total: int, wrote: Wrote) -> None:
        self._total, self._wrote, self._lock = total, wrote, threading.Lock()
        self._done, self._told = 0, 0.0

    def __call__(self, more: int) -> None:
        with self._lock:
            self._done += more
            if time.monotonic() - self._told > 0.1 or self._done >= self._total:
                self._told = time.monotonic()
                self._wrote(self._done, self._total)


class _Clock:
    """Seconds by phase, in order; one within another is its own."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._counted = 0.0

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start, counted = time.perf_counter(), self._counted
        self.seconds.setdefault(phase, 0.0)
        yield
        own = time.perf_counter() - start - (self._counted - counted)
        self._counted += own
        self.seconds[phase] = round(self.seconds[phase] + own, 4)
