"""The report of a load: what was made, what it weighs, how long it took, what the audit found."""

from __future__ import annotations

from typing import Any

import msgspec

from loadkit.errors import Finding
from loadkit.schema.finishes import Finished
from loadkit.schema.readings import Reading

__all__ = ["Change", "Loading", "Measurements", "Report", "Section"]


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """What a phase did to a group of parameters, as found by comparing before and after.

    Parameters:
        phase: the phase, such as "k-bit preparation".
        kind: "cast", "resized", "added" or "removed".
        what: from what to what: dtypes, or shapes.
        tensors: how many.
        bytes_before: their bytes before; 0 for added ones.
        bytes_after: their bytes after; 0 for removed ones.
        example: the name of one.
    """

    phase: str
    kind: str
    what: str
    tensors: int
    bytes_before: int
    bytes_after: int
    example: str


class Loading(msgspec.Struct, frozen=True, kw_only=True):
    """What `from_pretrained` said of the weights.

    Parameters:
        missing: tensors the model has and the checkpoint doesn't: they hold random values.
        unexpected: tensors of the checkpoint that the model has no place for.
        mismatched: tensors of different shapes, as "name: file shape, model shape".
        errors: what went wrong while converting, a line each.
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()


class Measurements(msgspec.Struct, frozen=True, kw_only=True):
    """What the loaded model consists of.

    Parameters:
        model_class: the class of the model, adapter aside.
        modules: class name of each weight-bearing module to how many there are.
        bytes_by_dtype: dtype to bytes of parameters and buffers, quantization constants included.
        parameters: how many parameters there are, quantized ones counted unpacked.
        trainable: how many of them train.
        devices: device to bytes.
        footprint: bytes of all parameters, buffers and quantization constants.
        unquantized: of a quantized base, the reason to the bytes that stay as they are, largest first.
    """

    model_class: str
    modules: dict[str, int]
    bytes_by_dtype: dict[str, int]
    parameters: int
    trainable: int
    devices: dict[str, int]
    footprint: int
    unquantized: dict[str, int] = {}


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """What a plugin tells of a loaded model.

    Parameters:
        title: what it is about, in a word or two.
        lines: what there is to say, a line each.
        plugin: who tells it; the core fills it in.
    """

    title: str
    lines: tuple[str, ...]
    plugin: str = ""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a load did.

    Parameters:
        measurements: what the model consists of.
        findings: what the audit found, errors first.
        changes: what was done to the parameters after loading: upcast, resized, added.
        loading: what `from_pretrained` said of the weights.
        seconds: phase to seconds, in order: "plan", "import", "processing", "load", "comparison" (with the
            files), the phases that the plan has, "finishing by NAME", "audit".
        peak_memory: bytes: the process's highest resident set so far, each accelerator's highest allocation.
        workarounds: what plugins did about faults of libraries, a line each.
        shortcuts: what made the load faster, a line each.
        readings: each setting that the model shows, as planned and as it is.
        finished: what plugins did to the finished model.
        sections: what plugins tell of it beside.
    """

    measurements: Measurements
    findings: tuple[Finding, ...] = ()
    changes: tuple[Change, ...] = ()
    loading: Loading = Loading()
    seconds: dict[str, float] = {}
    peak_memory: dict[str, int] = {}
    workarounds: tuple[str, ...] = ()
    shortcuts: tuple[str, ...] = ()
    readings: tuple[Reading, ...] = ()
    finished: tuple[Finished, ...] = ()
    sections: tuple[Section, ...] = ()

    def to_json(self) -> str:
        """The report as JSON text."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2).decode()

    def __str__(self) -> str:
        from loadkit.schema.report_text import report_text

        return report_text(self)

    def __repr__(self) -> str:
        m = self.measurements
        return f"<Report of {m.model_class}: {m.parameters:,} parameters, {len(self.findings)} findings>"

    def _repr_html_(self) -> str:
        from loadkit.schema.report_text import report_html

        return report_html(self)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        result: dict[str, Any] = msgspec.to_builtins(self)
        return result
