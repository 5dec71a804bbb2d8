"""Compiled kernels beside bitsandbytes' own: the same bits for everything that can be quantized, and nothing
left behind."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import bitsandbytes  # noqa: F401  (defines the operators)
import msgspec
import numpy as np
import pytest
import torch
from examples import A100, CPU, PACKAGES, planned
from forks import Forks
from hypothesis import given, settings
from hypothesis import strategies as st

import loadkit
from loadkit import Plan

pytest.importorskip("numba")
from loadkit_plugins.cpu_kernels import register
from loadkit_plugins.cpu_kernels.operators import BLOCK_SIZES, FOUR_BIT, KINDS, ROWS, own_kernel
from loadkit_plugins.cpu_kernels.threads import WorkerThreads

DTYPES = list(KINDS)
STORAGE = [torch.uint8, torch.int8, torch.bfloat16, torch.float16, torch.float32]
QUICKLY = settings(deadline=None, max_examples=150)
NUMBA = {**PACKAGES, "numba": "0.68.1"}
FAST = msgspec.structs.replace(CPU, packages=NUMBA)


@pytest.fixture(scope="module")
def folder(kernels: Path) -> Path:
    return kernels


@pytest.fixture
def four_bit(folder: Path) -> Iterator[Any]:
    with register.registered(FOUR_BIT, folder, lambda _: None) as refused:
        assert refused == ""
        yield torch.ops.bitsandbytes.quantize_4bit.default


@pytest.fixture
def in_rows(folder: Path) -> Iterator[Any]:
    with register.registered(ROWS, folder, lambda _: None) as refused:
        assert refused == ""
        yield torch.ops.bitsandbytes.int8_vectorwise_quant.default


@pytest.fixture(scope="module")
def own_four_bit() -> Any:
    return own_kernel(FOUR_BIT)


@pytest.fixture(scope="module")
def own_rows() -> Any:
    return own_kernel(ROWS)


def assert_same(found: tuple[Any, ...], own: tuple[Any, ...]) -> None:
    assert len(found) == len(own)
    for a, b in zip(found, own, strict=True):
        if b is None:
            assert a is None
            continue
        assert (a.dtype, a.shape, a.stride(), a.device) == (b.dtype, b.shape, b.stride(), b.device)
        assert torch.equal(bits(a), bits(b))


def bits(tensor: Any) -> Any:
    return tensor.contiguous().view(torch.uint8)


SPECIAL = [
    0.0,
    -0.0,
    1e-45,
    -1e-40,
    6e-8,
    1e-38,
    65504.0,
    -3e38,
    float("inf"),
    -float("inf"),
    float("nan"),
    1.0,
]


def weights(seed: int, count: int, dtype: Any, kind: str) -> Any:
    """Values of many sorts: ordinary, any bits at all, subnormal, few distinct ones (ties), or salted with
    special ones."""
    generator = np.random.default_rng(seed)
    if kind == "bits":
        words = generator.integers(0, 256, count * dtype.itemsize, dtype=np.uint8)
        return torch.from_numpy(words).view(dtype)
    values = generator.normal(0, 0.02, count)
    if kind == "steps":
        values = generator.integers(-16, 17, count) / 16
    if kind == "subnormal":
        values = values * (1e-6 if dtype == torch.float16 else 1e-38)
    if kind == "zero blocks":
        values[: count // 2] = 0
    with np.errstate(over="ignore"):
        narrow = torch.from_numpy(values.astype(np.float32))
    if kind == "special":
        for value in SPECIAL:
            narrow[generator.integers(0, count)] = value
    return narrow.to(dtype)


KINDS_OF_VALUES = ["normal", "bits", "steps", "subnormal", "zero blocks", "special"]


@QUICKLY
@given(
    st.integers(0, 2**32), st.integers(1, 9000), st.sampled_from(DTYPES), st.sampled_from(KINDS_OF_VALUES),
    st.sampled_from(sorted(BLOCK_SIZES)), st.sampled_from(["nf4", "fp4"]),
)  # fmt: skip
def test_four_bits(seed: int, count: int, dtype: Any, kind: str, blocksize: int, quant_type: str) -> None:
    given = weights(seed, count, dtype, kind), blocksize, quant_type, torch.uint8
    with register.registered(FOUR_BIT, None, lambda _: None) as refused:
        assert refused == ""
        found = torch.ops.bitsandbytes.quantize_4bit.default(*given)
    assert_same(found, own_kernel(FOUR_BIT)(*given))


@QUICKLY
@given(
    st.integers(0, 2**32), st.integers(1, 40), st.integers(1, 700), st.sampled_from(KINDS_OF_VALUES)
)  # fmt: skip
def test_rows_of_eight_bits(seed: int, height: int, width: int, kind: str) -> None:
    given = weights(seed, height * width, torch.float16, kind).view(height, width)
    with register.registered(ROWS, None, lambda _: None) as refused:
        assert refused == ""
        found = torch.ops.bitsandbytes.int8_vectorwise_quant.default(given)
    assert_same(found, own_kernel(ROWS)(given))


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("largest", [1.0, 0.0371, 640.0])
def test_every_value_of_16_bits(
    four_bit: Any, own_four_bit: Any, dtype: Any, quant_type: str, largest: float
) -> None:
    """Each value, in a block with one of a given magnitude, and in blocks of all others of its sign and
    exponent."""
    every = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(dtype)
    every = every[every.float().isfinite()]
    small = every[every.float().abs() <= largest]
    count = small.numel() // 63 * 63
    scaled = torch.cat([torch.full((count // 63, 1), largest, dtype=dtype), small[:count].view(-1, 63)], 1)
    for tensor in (scaled, every):
        given = tensor, 64, quant_type, torch.uint8
        assert_same(four_bit(*given), own_four_bit(*given))


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_values_on_a_midpoint_and_beside_it(four_bit: Any, own_four_bit: Any, quant_type: str) -> None:
    from bitsandbytes.backends.default.ops import _get_4bit_quantize_bounds

    bounds = _get_4bit_quantize_bounds(quant_type, torch.device("cpu"))[0].numpy()
    below, above = np.nextafter(bounds, np.float32(-2)), np.nextafter(bounds, np.float32(2))
    for scale in (1.0, 0.5, 2.0**-20, 3.0):  # the first three keep the values exact
        values = np.concatenate([[1.0], bounds, below, above, [0.0, -0.0], np.zeros(16)]).astype(np.float32)
        given = torch.from_numpy(values * np.float32(scale)), 64, quant_type, torch.uint8
        found, own = four_bit(*given), own_four_bit(*given)
        assert_same(found, own)
        assert found[0].unique().numel() > 8


@pytest.mark.parametrize("storage", STORAGE, ids=str)
@pytest.mark.parametrize("count", [64 * 64, 64 * 64 + 8, 64 * 64 + 7])
def test_what_the_data_are_packed_in(four_bit: Any, own_four_bit: Any, storage: Any, count: int) -> None:
    given = weights(0, count, torch.bfloat16, "normal"), 64, "nf4", storage
    if (count + 1) // 2 % storage.itemsize:
        with pytest.raises(RuntimeError) as own:
            own_four_bit(*given)
        with pytest.raises(RuntimeError) as ours:
            four_bit(*given)
        assert str(ours.value) == str(own.value)
    else:
        assert_same(four_bit(*given), own_four_bit(*given))


def shaped() -> dict[str, Any]:
    flat = weights(1, 70_000, torch.bfloat16, "normal")
    odd = torch.empty(2 * 4096 + 1, dtype=torch.uint8)[1:].view(4096, 2)
    misplaced = torch.frombuffer(bytearray(2 * 4096 + 1), dtype=torch.bfloat16, offset=1, count=4096)
    misplaced.copy_(flat[:4096])
    assert misplaced.data_ptr() % 2
    assert odd.shape == (4096, 2)
    return {
        "a matrix": flat.view(700, 100),
        "transposed": flat.view(700, 100).t(),
        "every other": flat[::2],
        "three dimensions": flat.view(10, 70, 100).permute(2, 0, 1),
        "from the middle": flat[3:],
        "one value": flat[:1],
        "no dimension": flat[0],
        "a parameter": torch.nn.Parameter(flat.view(700, 100), requires_grad=True),
        "at an odd address": misplaced,
        "expanded": flat[:100].expand(50, 100),
    }


@pytest.mark.parametrize("name", shaped())
def test_every_shape(four_bit: Any, own_four_bit: Any, name: str) -> None:
    given = shaped()[name], 64, "nf4", torch.uint8
    assert_same(four_bit(*given), own_four_bit(*given))


def test_nothing_and_too_much(four_bit: Any, own_four_bit: Any, in_rows: Any, own_rows: Any) -> None:
    """What the kernels leave to bitsandbytes: no values, other dtypes, block sizes and dimensions, outliers'
    columns."""
    empty = torch.empty(0, dtype=torch.bfloat16), 64, "nf4", torch.uint8
    assert_same(four_bit(*empty), own_four_bit(*empty))
    for other in (
        (weights(0, 640, torch.float64, "normal"), 64, "nf4", torch.uint8),
        (weights(0, 660, torch.bfloat16, "normal"), 66, "nf4", torch.uint8),
    ):
        assert_same(four_bit(*other), own_four_bit(*other))
    matrix = weights(0, 640, torch.float16, "normal").view(10, 64)
    matrix[2, 3] = 8
    for rows in ((matrix, 6.0), (matrix.float(), 0.0), (matrix.bfloat16(), 0.0), (matrix.t(), 0.0)):
        assert_same(in_rows(*rows), own_rows(*rows))


def test_threads_that_flush_subnormal_numbers(four_bit: Any, own_four_bit: Any) -> None:
    given = weights(0, 6400, torch.float32, "subnormal"), 64, "nf4", torch.uint8
    kept = own_four_bit(*given)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor can't flush them")
    try:
        found, own = four_bit(*given), own_four_bit(*given)
    finally:
        torch.set_flush_denormal(False)
    assert_same(found, own)
    assert not torch.equal(bits(found[1]), bits(kept[1]))


def test_large_tensors_from_many_threads_at_once(four_bit: Any, own_four_bit: Any) -> None:
    """As when weights are quantized where they are materialised: in a pool of threads."""
    tensors = [weights(seed, 1 << 20, DTYPES[seed % 3], "normal") for seed in range(9)]
    own = [own_four_bit(tensor, 64, "nf4", torch.uint8) for tensor in tensors]
    with ThreadPoolExecutor(9) as pool:
        for _ in range(5):
            for found, expected in zip(
                pool.map(lambda tensor: four_bit(tensor, 64, "nf4", torch.uint8), tensors), own, strict=True
            ):
                assert_same(found, expected)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_work_is_shared_whole(threads: int) -> None:
    workers = WorkerThreads(threads)
    done: list[int] = []
    names: set[str] = set()

    def work(start: int, stop: int) -> None:
        names.add(threading.current_thread().name)
        done.extend(range(start, stop))

    workers.share(work, 1003, 10)
    assert sorted(done) == list(range(1003))
    assert len(names) <= threads
    workers.share(work, 5, 10)
    workers.close()
    workers.share(work, 1003, 10)
    assert len(done) == 1003 + 5 + 1003


def test_what_fails_in_one_thread_fails_for_the_caller() -> None:
    workers = WorkerThreads(2)
    with pytest.raises(ZeroDivisionError):
        workers.share(lambda start, stop: print(1 // (start - 50)), 100, 1)
    workers.close()


def test_bitsandbytes_own_is_found_again_afterwards(folder: Path) -> None:
    before = torch._C._dispatch_dump("bitsandbytes::quantize_4bit")
    with register.registered(FOUR_BIT, folder, lambda _: None):
        during = torch._C._dispatch_dump("bitsandbytes::quantize_4bit")
        with register.registered(FOUR_BIT, folder, lambda _: None):
            pass
        assert torch._C._dispatch_dump("bitsandbytes::quantize_4bit") == during != before
    assert torch._C._dispatch_dump("bitsandbytes::quantize_4bit") == before
    with pytest.raises(KeyError), register.registered(FOUR_BIT, folder, lambda _: None):
        raise KeyError
    assert torch._C._dispatch_dump("bitsandbytes::quantize_4bit") == before


def test_a_kernel_that_errs_is_never_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """One bit in one code of one case is enough."""
    right = register.KERNELS[FOUR_BIT]

    def wrong(own: Any, workers: WorkerThreads) -> Any:
        kernel = right.make(own, workers)

        def flip(weights: Any, blocksize: int, quant_type: str, storage: Any) -> Any:
            packed, absmax = kernel(weights, blocksize, quant_type, storage)
            if quant_type == "fp4" and weights.dtype == torch.float16:
                packed[-1] ^= 1
            return packed, absmax

        return flip

    monkeypatch.setattr(register, "_verdicts", {})
    monkeypatch.setattr(register, "KERNELS", {FOUR_BIT: right._replace(make=wrong)})
    before = torch._C._dispatch_dump("bitsandbytes::quantize_4bit")
    with register.registered(FOUR_BIT, None, lambda _: None) as refused:
        assert refused == "the compiled one gives other bits for fp4 of 512 torch.float16 values"
        assert torch._C._dispatch_dump("bitsandbytes::quantize_4bit") == before


def test_somebody_elses_kernel_is_left_in_place(folder: Path) -> None:
    library = torch.library.Library("bitsandbytes", "IMPL")
    library.impl("quantize_4bit", lambda *given: (given[0], given[0]), "CPU")
    try:
        with register.registered(FOUR_BIT, folder, lambda _: None) as refused:
            assert refused == "a kernel of somebody else's is registered already"
    finally:
        library._destroy()


# --- Compiled code that is kept

SERVE = """
import logging, sys, pathlib, warnings
logging.disable(logging.WARNING)
warnings.simplefilter("error")
warnings.filterwarnings("ignore", "This process", DeprecationWarning)
import torch, bitsandbytes
from numba.core import config
config.reload_config()  # it may have been imported before
from loadkit_plugins.cpu_kernels import operators, register
with register.registered(operators.FOUR_BIT, pathlib.Path(sys.argv[1]), print) as refused:
    print("refused:", refused)
    weights = torch.randn(1 << 18).bfloat16()
    found = torch.ops.bitsandbytes.quantize_4bit(weights, 64, "nf4", torch.uint8)
    if hasattr(__import__("os"), "fork") and "fork" in sys.argv:
        import os
        child = os.fork()
        if not child:
            again = torch.ops.bitsandbytes.quantize_4bit(weights, 64, "nf4", torch.uint8)
            os._exit(0 if found[0].numpy().tobytes() == again[0].numpy().tobytes() else 7)
        print("child:", os.waitpid(child, 0)[1])
own = torch.ops.bitsandbytes.quantize_4bit(weights, 64, "nf4", torch.uint8)
assert torch.equal(found[0], own[0]) and torch.equal(found[1], own[1])
"""


Serve = Callable[..., list[str]]


@pytest.fixture
def in_a_process(forks: Forks) -> Serve:
    """Serves in a process of its own; what it says, line by line."""

    def serve(folder: Path, *more: str, **environ: str) -> list[str]:
        done = forks.run(SERVE, folder, *more, environ=environ)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return serve


def test_code_is_compiled_once_and_kept(tmp_path: Path, in_a_process: Serve) -> None:
    """Other damage than this is numba's own to notice: the code is made again in memory."""
    assert in_a_process(tmp_path / "kept") == ["compiling kernels for this processor", "refused: "]
    assert in_a_process(tmp_path / "kept") == ["refused: "]
    for path in (tmp_path / "kept").rglob("*.nb?"):
        path.write_bytes(b"\x80\x04damaged")
    assert in_a_process(tmp_path / "kept")[-1] == "refused: "


def test_code_that_cannot_be_kept_is_compiled_in_memory(tmp_path: Path, in_a_process: Serve) -> None:
    (tmp_path / "file").write_text("no folder")
    said = in_a_process(tmp_path / "file" / "kernels", "fork")
    assert said == ["compiling kernels for this processor", "refused: ", "child: 0"]
    assert in_a_process(tmp_path, NUMBA_DISABLE_JIT="1") == ["refused: NUMBA_DISABLE_JIT is set"]


# --- The plugin


def line(plan: Plan) -> str:
    return " ".join(s.line for s in plan.shortcuts if s.plugin == "cpu-kernels")


@pytest.mark.parametrize(
    ("machine", "options", "words"),
    [
        (FAST, {}, "compiled kernels quantize on the CPU, with bitsandbytes' bits (numba 0.68.1)"),
        (FAST, {"profile": "qlora-8bit"}, "compiled kernels quantize on the CPU"),
        (FAST, {"profile": "lora"}, ""),
        (A100, {}, ""),
        (CPU, {}, "bitsandbytes' own kernels quantize on the CPU: numba isn't installed (pip install 'loadkit[fast]')"),
        (FAST, {"cpu_kernels": False}, "bitsandbytes' own kernels quantize on the CPU: cpu_kernels=False, and you asked for it"),
        (FAST, {"profile": "qlora-8bit", "llm_int8_has_fp16_weight": True}, ""),
        (msgspec.structs.replace(CPU, packages={**NUMBA, "numba": "0.71.0"}), {}, "numba is 0.71.0, and the compiled ones were proved with 0.68"),
        (msgspec.structs.replace(CPU, packages={**NUMBA, "bitsandbytes": "0.50.3"}), {}, "bitsandbytes is 0.50.3, and the compiled ones were proved with 0.50.2"),
        (msgspec.structs.replace(CPU, packages={**NUMBA, "torch": "2.13.1+cpu"}), {}, "compiled kernels quantize on the CPU"),
    ],
)  # fmt: skip
def test_what_the_plan_says(machine: loadkit.Machine, options: dict[str, Any], words: str) -> None:
    plan = planned(machine=machine, **{"profile": "qlora", **options})
    assert words in line(plan)
    assert bool(words) == bool(line(plan))
    assert [s.serves for s in plan.shortcuts if s.plugin == "cpu-kernels"] == (
        [words.startswith("compiled")] if words else []
    )


def parts(model: Any) -> dict[str, Any]:
    """Every tensor that a loaded model holds, the packed parameters' constants included."""
    found = dict(model.state_dict())
    for name, parameter in model.named_parameters():
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            found |= {f"{name}.{key}": value for key, value in state.as_dict(packed=True).items()}
    return found


@pytest.mark.parametrize("profile", ["inference-4bit", "inference-8bit"])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_loaded_models_are_equal(tiny: Any, profile: str, quant_type: str) -> None:
    more = {"bnb_4bit_quant_type": quant_type, "bnb_4bit_use_double_quant": True} if "4" in profile else {}
    common: dict[str, Any] = {"profile": profile, **more}
    ours = loadkit.load(tiny("mistral"), **common)
    own = loadkit.load(tiny("mistral"), cpu_kernels=False, **common)
    assert "compiled kernels quantized on the CPU (cpu-kernels)" in ours.report.shortcuts
    assert any("cpu_kernels=False, and you asked for it" in told for told in own.report.shortcuts)
    found, expected = parts(ours.model), parts(own.model)
    assert list(found) == list(expected)
    for name in found:
        assert torch.equal(bits(found[name]), bits(expected[name])), name


def test_whatever_goes_wrong_the_model_is_loaded(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: Any) -> Any:
        raise OSError("no such place")

    monkeypatch.setattr(register, "registered", broken)
    loaded = loadkit.load(tiny("mistral"), profile="inference-4bit")
    assert any(
        "own kernels quantized on the CPU: OSError: no such place" in t for t in loaded.report.shortcuts
    )


def test_threads_are_gone_after_a_load(tiny: Any) -> None:
    loadkit.load(tiny("mistral"), profile="inference-4bit")
    assert not [t.name for t in threading.enumerate() if t.name.startswith("loadkit-kernels")]
