"""The page of stored formats: every method that transformers knows, and what it is in memory where."""

from __future__ import annotations

from collections.abc import Iterator

from loadkit import Accelerator, Machine
from loadkit_plugins.prequantized.method import Method
from loadkit_plugins.prequantized.methods import METHODS, SOURCE, UNREADABLE
from loadkit_plugins.prequantized.settings import format_on, misplaced
from loadkit_plugins.stored_blocks.headers import METHODS as AGAIN

CAPABILITIES = ((7, 5), (8, 0), (8, 9), (9, 0), (10, 0))

ABOUT = f"""\
A checkpoint can be stored quantized, and `quant_method` in its config.json says by which method. What it is in
memory is another question: transformers turns some formats back into floating point where their kernels can't run,
in twice or four times the memory. The plan says which, and why; `loadkit plan MODEL --machine 1xH100` says it of
another machine. This is the same table that the plan is made from, read off {SOURCE}'s quantizers, and a test asks
those of the installed transformers.

- **stored**: the weights stay as they are in the files; **16 bits**: they are turned back into the dtype of the load,
  and train and are saved like any other; **no**: the plan is refused, with the ways out.
- **trains** and **saves** are said of weights that stay: an adapter over them, and `save_pretrained`.
- **4 bits**: whether `load_in_4bit=True`, `load_in_8bit=True` and profiles that prefer them [quantize it
  again](../how-to/quantize-again.md): weights are decoded one by one, and rounded twice.
- `dequantize=True` turns back the methods marked so on any machine: the way to train what is stored by one that can't.
- Packages are those of the machine; a missing one is a problem of the plan."""

MORE = """\
Weights of compressed-tensors stay until the first forward pass, which turns them back; the plan warns of the memory.
Those that are packed (`pack-quantized`) take no adapter before; save the model before it runs, or not at all. torchao
trains over 8 bits only. Methods in which one kind of config trains and another doesn't (bitnet, fouroversix) name the
fields; layers of bitnet's `autobitlinear` hold weights in floating point whatever the files do. eetq, fp_quant and sinq
have layers that PEFT doesn't wrap.

A training load of gptq or awq sets `backend=auto_trainable`, where the config leaves the kernel open: gptqmodel would
take one without a backward pass. Weights of fp8 that stay load without `kernels`, and compute only with it: the plan
warns. A loaded gptq model is saved with its zero points one off, so the plan
says that it can't be. What else stays packed is saved as it is stored; with transformers alone, bitsandbytes and torchao can't be.

hqq and nvfp4 are methods by which transformers quantizes or once did; checkpoints that are stored so it doesn't load.

A GGUF file is named as the source (`models/tiny.gguf`) or by `gguf_file=` beside a folder or repository. Its header is
read without torch, and its weights are turned back while they are loaded, as transformers does; config and tokenizer
come from the file too.

A profile's preference for 4 bits gives way to a stored format that can't be quantized again, and the plan says "instead
of". Asking for another quantization of such a one yourself is refused, as transformers would drop it."""


def formats() -> Iterator[str]:
    """The parts of the page."""
    yield "# Stored formats"
    yield ABOUT
    heads = ["CPU", *(f"sm{major}{minor}" for major, minor in CAPABILITIES), "Apple"]
    rows = [
        "| method | packages | "
        + " | ".join(heads)
        + " | `dequantize=True` | 4 bits | trains | saves | quantizer |"
    ]
    rows.append("|" + "---|" * (len(heads) + 7))
    yield "\n".join([*rows, *(_row(method) for method in METHODS)])
    yield MORE
    others = ", ".join(f"`{name}` ({whose})" for name, whose in UNREADABLE.items())
    yield (
        f"Methods that transformers doesn't know are refused, as it would take the packed weights for plain ones: {others}, and any other."
    )


def _row(method: Method) -> str:
    machines = [_machine(method), *(_machine(method, c) for c in CAPABILITIES), _machine(method, kind="mps")]
    needs = ", ".join(f"`{need.replace('|', '` or `')}`" for need in (*method.needs, *method.needs_kept))
    runs = ", ".join(f"`{need}` to run" for need in method.runs_with)
    cells = [
        f"`{method.name}`",
        ", ".join(filter(None, (needs, runs))) or "none",
        *(_cell(method, machine) for machine in machines),
        f"`{method.config}`" if method.config else "",
        "yes" if method.name in AGAIN else "",
        _trains(method),
        "" if method.unreadable else "yes" if method.saves else "no",
        f"`{method.quantizer}`",
    ]
    return "| " + " | ".join(cells) + " |"


def _cell(method: Method, machine: Machine) -> str:
    if method.unreadable:
        return "no"
    made = format_on(method, {}, machine, "bfloat16", asked=False)
    if made.dtype:
        return "16 bits"
    return "no" if misplaced(method, machine) else "stored"


def _trains(method: Method) -> str:
    if method.unreadable:
        return ""
    if method.unadapted or not method.trains:
        return "no"
    fields = ", ".join(f"`{field}={value!r}`" for field, value in method.trains_with.items())
    return f"with {fields or f'`{method.trains_from}`'}" if fields or method.trains_from else "yes"


def _machine(method: Method, capability: tuple[int, int] | None = None, kind: str = "cuda") -> Machine:
    """A machine that has every package of the method."""
    needs = (*method.needs, *method.needs_kept, *method.runs_with)
    packages = {
        need.split("|")[0].partition(">")[0]: need.partition(">=")[2].split(",")[0] or "1" for need in needs
    }
    accelerator = Accelerator(
        kind="mps" if kind == "mps" else "cuda", name="", capability=capability or (0, 0)
    )
    return Machine(packages=packages, accelerators=(accelerator,) if capability or kind == "mps" else ())
