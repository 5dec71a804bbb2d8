"""cpu-kernels: quantize on a CPU with compiled kernels, which give bitsandbytes' bits many times faster."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from loadkit import Machine, Option, Plan, hookimpl
from loadkit.plugins import Entries, LoadingAid, Shortcut, pause_gc

NAME = "cpu-kernels"

PROVED: Mapping[str, tuple[tuple[int, ...], ...]] = {
    "bitsandbytes": ((0, 50, 2),),
    "torch": ((2, 13),),
    "numba": ((0, 68),),
}
"""The versions, or their beginnings, with which every kernel gave bitsandbytes' own bits in the tests
(tests/plugins/cpu_kernels). With others bitsandbytes' own kernels are used."""


@hookimpl
def loadkit_options() -> Sequence[Option]:
    return [
        Option(
            name="cpu_kernels",
            type="bool",
            stage="quantization",
            help="quantize on a CPU with compiled kernels (the default); False leaves it to bitsandbytes' own, which give the same bits",
        )
    ]


@hookimpl
def loadkit_shortcuts(plan: Plan, machine: Machine) -> Sequence[Shortcut]:
    refused = _refused(plan, machine)
    if not _quantizes_on_cpu(plan, machine):
        return []
    line = (
        f"bitsandbytes' own kernels quantize on the CPU: {refused}"
        if refused
        else f"compiled kernels quantize on the CPU, with bitsandbytes' bits (numba {machine.packages['numba']})"
    )
    return [Shortcut(plugin=NAME, line=line, serves=not refused)]


@hookimpl
def loadkit_shorten_loading(
    plan: Plan, machine: Machine, entries: Entries, progress: Callable[[str], None]
) -> LoadingAid | None:
    if not _quantizes_on_cpu(plan, machine):
        return None
    return CompiledKernels(plan, _refused(plan, machine), entries.root.with_name("kernels"), progress)


class CompiledKernels(LoadingAid):
    """Compiled kernels for bitsandbytes' operators while one checkpoint is loaded.

    Parameters:
        plan: quantizes with bitsandbytes on the CPU.
        refused: why they aren't used; "" where they may be.
        folder: where compiled code is kept.
        progress: called before something is compiled.
    """

    def __init__(self, plan: Plan, refused: str, folder: Path, progress: Callable[[str], None]) -> None:
        self._four_bit = plan.quantization is not None and plan.quantization.bits == 4
        self._refused = refused
        self._folder = folder
        self._progress = progress
        self._registered = ExitStack()

    def __enter__(self) -> CompiledKernels:
        if not self._refused:
            try:
                with pause_gc():  # bitsandbytes and numba are imported
                    self._refused = self._register()
            except Exception as error:  # whatever it is, bitsandbytes' own kernels can do the work
                self._refused = f"{type(error).__name__}: {error}"
        self.line = (
            f"bitsandbytes' own kernels quantized on the CPU: {self._refused}"
            if self._refused
            else "compiled kernels quantized on the CPU"
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._registered.close()

    def _register(self) -> str:
        from loadkit_plugins.cpu_kernels import operators, register

        operator = operators.FOUR_BIT if self._four_bit else operators.ROWS
        return self._registered.enter_context(register.registered(operator, self._folder, self._progress))


def _quantizes_on_cpu(plan: Plan, machine: Machine) -> bool:
    quantization = plan.quantization
    if quantization is None or quantization.method != "bitsandbytes" or quantization.prequantized:
        return False
    if quantization.options.get("llm_int8_has_fp16_weight"):
        return False
    device_map = plan.placement.device_map
    if not machine.accelerators:
        return True
    return isinstance(device_map, dict) and all(device == "cpu" for device in device_map.values())


def _refused(plan: Plan, machine: Machine) -> str:
    """Why the compiled kernels aren't used, as far as that shows without them; "" where they may be."""
    asked = plan.request.asked("cpu_kernels")
    if asked is not None and not asked.value:
        return f"cpu_kernels=False, and {asked.because}"
    for package, proved in PROVED.items():
        version = machine.version(package)
        if version is None:
            return f"{package} isn't installed (pip install 'loadkit[fast]')"
        if not any(version[: len(beginning)] == beginning for beginning in proved):
            shown = ", ".join(".".join(map(str, beginning)) for beginning in proved)
            return f"{package} is {machine.packages[package]}, and the compiled ones were proved with {shown}"
    return ""
