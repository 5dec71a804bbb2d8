"""The manifest of a load: what it takes to repeat it months later, or to say what has changed."""

from __future__ import annotations

import hashlib
import os
import platform
import re
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

from loadkit.cache.atomic_write import write_whole
from loadkit.errors import Finding, LoadkitError
from loadkit.facts.local_copies import folder_of
from loadkit.schema.finishes import Finished
from loadkit.schema.plans import Plan
from loadkit.schema.readings import Reading
from loadkit.schema.reports import Change, Report
from loadkit.schema.request import Progress

__all__ = [
    "Difference",
    "FileProof",
    "Manifest",
    "differences",
    "files_of",
    "library_versions",
    "lines",
    "make_manifest",
    "proof_of",
    "python_version",
    "read_saved",
]

LIBRARIES = (
    "accelerate",
    "bitsandbytes",
    "huggingface-hub",
    "loadkit",
    "peft",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
)
"""What takes part in a load, by distribution: loadkit's own dependencies. Plugins bring theirs."""

WORKAROUNDS: Mapping[str, Callable[[Plan], bool]] = {
    "transformers is kept from injecting an adapter that lies beside the weights (transformers 5.23)": lambda plan: (
        plan.checkpoint.kind != "hub"
    ),
    "model.save_pretrained writes the checkpoint's own use_cache": lambda plan: plan.use_cache is not None,
    "the embeddings' result may be changed in place while gradients flow from it (transformers 5.20 and later)": lambda plan: (
        plan.preparation.input_gradients
    ),
    "norms that the model casts to the dtype of stay in the weights' dtype (transformers 5.23, blip-2)": lambda plan: (
        bool(plan.preparation.norms_left)
    ),
    "files are fetched before transformers looks for them: it takes a refusal for an absence (transformers 5.23)": lambda plan: (
        plan.checkpoint.kind != "folder"
    ),
    "weights that are dequantized while loading get one dtype, and are saved plain (transformers 5.23)": lambda plan: (
        plan.quantization is not None and not plan.quantization.packed
    ),
    "the list of modules left unquantized is passed in full (transformers 5.23)": lambda plan: (
        plan.quantization is not None and bool(plan.quantization.skip_modules)
    ),
}
"""What loadkit does about faults elsewhere, to when it does."""

CHUNK = 1 << 22

NAME = re.compile(r"[\w.-]+")
"""The name at the beginning of a requirement."""


class FileProof(msgspec.Struct, frozen=True, kw_only=True):
    """One file: its size in bytes, and its hashes in hexadecimal.

    Parameters:
        sha256: against forgery; "" for weights that a merge read or wrote, unless it was asked for.
        xxh3: XXH3 (128 bits), against damage, of those weights; "" for others.
    """

    size: int
    sha256: str = ""
    xxh3: str = ""

    def __str__(self) -> str:
        kind, digest = ("sha256", self.sha256) if self.sha256 else ("xxh3", self.xxh3)
        return f"{self.size} bytes, {kind} {digest[:16]}"


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What was loaded, from what, by what.

    Parameters:
        plan: the plan, with the request and every decision.
        files: the files that were loaded, by "checkpoint/NAME", "adapter NAME/FILE" or "tokenizer/NAME".
        libraries: distribution to version.
        python: Python's version and the machine's architecture.
        workarounds: what was done about faults of libraries, a line each.
        findings: what the audit found.
        changes: what was done to the parameters after loading.
        readings: each setting that the model showed, as planned and as it was.
        finished: what plugins did to the finished model.
        seconds: phase to seconds.
        written: the files that a merge made of them, by their names; none for a load.
        format: the version of this layout.
    """

    plan: Plan
    files: dict[str, FileProof]
    libraries: dict[str, str]
    python: str
    workarounds: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    changes: tuple[Change, ...] = ()
    readings: tuple[Reading, ...] = ()
    finished: tuple[Finished, ...] = ()
    seconds: dict[str, float] = {}
    written: dict[str, FileProof] = {}
    format: int = 1

    def __str__(self) -> str:
        from loadkit.manifest.manifest_text import manifest_text

        return manifest_text(self)

    def __repr__(self) -> str:
        return f"<Manifest of {self.plan.checkpoint.source!r}: {len(self.files)} files, digest {self.plan.digest[:12]}>"

    def _repr_html_(self) -> str:
        from loadkit.manifest.manifest_text import manifest_html

        return manifest_html(self)

    def to_json(self) -> str:
        """The manifest as JSON text; `Manifest.from_json` reads it back."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2).decode()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a file, whole or not at all; `load(replay=path)` takes it.

        Raises:
            LoadkitError: the file can't be written.
        """
        try:
            write_whole(path, f"{self.to_json()}\n".encode())
        except OSError as error:
            place = os.fspath(path)
            raise LoadkitError(f"the manifest can't be written to {place!r}: {error.strerror}") from error

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """Read a manifest that `to_json` wrote.

        Raises:
            LoadkitError: the text isn't one.
        """
        try:
            raw = msgspec.json.decode(text, type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise LoadkitError(f"this isn't a manifest that loadkit wrote: {error}") from error
        return msgspec.structs.replace(raw, plan=Plan.from_json(msgspec.json.encode(raw.plan)))


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that isn't the same: what it is, and how it is on either side ("" where it isn't there)."""

    what: str
    first: str
    second: str

    def __str__(self) -> str:
        return f"{self.what}: {self.first or 'nothing'} → {self.second or 'nothing'}"


def make_manifest(plan: Plan, report: Report, progress: Progress | None = None) -> Manifest:
    """Take down a load. Every file is read once, for its hash."""
    return Manifest(
        plan=plan,
        files=proofs_of(plan, progress),
        libraries=library_versions(plan),
        python=python_version(),
        workarounds=(*(line for line, applies in WORKAROUNDS.items() if applies(plan)), *report.workarounds),
        findings=report.findings,
        changes=report.changes,
        readings=report.readings,
        finished=report.finished,
        seconds=report.seconds,
    )


def differences(first: Plan | Manifest, second: Plan | Manifest) -> list[Difference]:
    """What differs between two plans or manifests; seconds and findings aside."""
    left, right = lines(first), lines(second)
    # A plan knows nothing of files and libraries.
    aside = (
        ("file ", "written ", "library ", "python")
        if isinstance(first, Plan) or isinstance(second, Plan)
        else ()
    )
    pairs = {key: (left.get(key, ""), right.get(key, "")) for key in sorted({*left, *right})}
    return [
        Difference(what=key, first=one, second=other)
        for key, (one, other) in pairs.items()
        if one != other and not key.startswith(aside)
    ]


def read_saved(path: str | Path) -> Plan | Manifest:
    """The plan or manifest that a file holds; a LoadkitError where it can't be read, or is neither."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise LoadkitError(f"{str(path)!r} can't be read: {error.strerror or error}") from error
    try:
        found = msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        raise LoadkitError(f"{str(path)!r} isn't JSON: {error}") from error
    manifest = isinstance(found, dict) and "plan" in found
    try:
        return Manifest.from_json(data) if manifest else Plan.from_json(data)
    except LoadkitError as error:
        raise LoadkitError(f"{str(path)!r} holds neither a plan nor a manifest: {error}") from error


def files_of(plan: Plan) -> dict[str, Path]:
    """The files that a load reads, as far as they are on this machine."""
    checkpoint, processing = plan.checkpoint, plan.processing
    places = {"checkpoint": (checkpoint.location, checkpoint.commit)}
    if processing.kind != "none" and processing.source != checkpoint.location:
        places["tokenizer"] = (processing.source, processing.revision)
    if plan.adapters is not None:
        places |= {f"adapter {a.name}": (a.source, a.revision) for a in plan.adapters.members if a.source}
    return {
        f"{role}/{path.relative_to(folder).as_posix()}": path
        for role, (location, commit) in places.items()
        if (folder := folder_of(location, commit, plan.kwargs.get("cache_dir"))) is not None
        for path in sorted(folder.iterdir())
        if path.is_file() and _matters(role, path.name, plan)
    }


def proofs_of(plan: Plan, progress: Progress | None) -> dict[str, FileProof]:
    """Size and hash of each of these files, which are read for them."""
    proofs = {}
    for name, path in files_of(plan).items():
        if progress:
            progress(f"hashing {name}")
        proofs[name] = proof_of(path)
    return proofs


def proof_of(path: Path) -> FileProof:
    """Size and hash of a file, which is read for it."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return FileProof(size=size, sha256=digest.hexdigest())


def library_versions(plan: Plan) -> dict[str, str]:
    """The versions of what takes part, here and now: plugins, and what their distributions depend on."""
    wanted = {*LIBRARIES, *(_normalised(about.split(" ")[0]) for about in plan.plugins.values() if about)}
    installed = {_normalised(name): d for d in metadata.distributions() if (name := d.metadata["Name"])}
    for name in sorted((wanted - {*LIBRARIES}) & {*installed}):
        needed = (line for line in installed[name].requires or () if "extra ==" not in line)
        wanted |= {_normalised(match.group()) for line in needed if (match := NAME.match(line))}
    return {name: installed[name].version for name in sorted(wanted) if name in installed}


def python_version() -> str:
    """Python's version and the machine's architecture."""
    return f"{platform.python_version()} {platform.machine()}"


def _normalised(name: str) -> str:
    return name.lower().replace("_", "-")


def _matters(role: str, name: str, plan: Plan) -> bool:
    """Whether a load reads the file: weights of another format, pictures and notes it doesn't."""
    if role.startswith("adapter"):
        return name.startswith("adapter_")
    if name.endswith((".safetensors", ".bin", ".pt", ".h5", ".gguf")):
        return role == "checkpoint" and name in plan.checkpoint.weight_files
    return name.endswith((".json", ".jinja", ".model", ".txt", ".py"))


def lines(item: Plan | Manifest) -> dict[str, str]:
    """Everything worth comparing, a line each: what it is, to how it is."""
    plan = item if isinstance(item, Plan) else item.plan
    found = {f"decision {d.stage}": _text(d.value) for d in plan.decisions}
    found |= {f"because {d.stage}": f"{d.plugin}: {d.because}" for d in plan.decisions}
    found |= {f"asked {name}": f"{_text(a.value)} by {a.by}" for name, a in plan.request.options.items()}
    found |= {f"finish {f.plugin}": f"{f.what}, within {f.tolerance:g}" for f in plan.finishes}
    found |= {f"plugin {name}": version for name, version in plan.plugins.items()}
    summary: dict[str, Any] = msgspec.to_builtins(plan.checkpoint)
    found |= {f"checkpoint {key}": _text(value) for key, value in summary.items() if value}
    found["machine"] = plan.machine
    if isinstance(item, Manifest):
        found |= {f"file {name}": str(p) for name, p in item.files.items()}
        found |= {f"written {name}": str(p) for name, p in item.written.items()}
        found |= {f"library {name}": version for name, version in item.libraries.items()}
        found["python"] = item.python
    return found


def _text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value, order="sorted").decode()
