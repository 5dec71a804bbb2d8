"""Weights against files, on tensors of a few numbers: which are compared, how far, and what is said of a
difference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from loadkit import Finding
from loadkit.audit.audit import audit
from loadkit.audit.local_shard import Part
from loadkit.audit.weight_comparison import _difference, _rows, compare_with_files
from loadkit.schema.reports import Loading

NAN = float("nan")
INF = float("inf")


class Model(nn.Module):
    """Two layers under `model`, and a head beside it."""

    base_model_prefix = "model"

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.ModuleDict({name: nn.Linear(2, 2, bias=False) for name in ("a", "b")})
        self.head = nn.Linear(2, 2, bias=False)


class Manager:
    """Plugins that compare a tensor, or leave it to the core."""

    def __init__(self, answer: Callable[[Any], str | None] = lambda parameter: None) -> None:
        self.answer = answer
        self.asked: list[dict[str, Any]] = []

    def first(self, hook: Any, **given: Any) -> str | None:
        assert hook.__name__ == "loadkit_compare_tensor"
        self.asked.append(given)
        return self.answer(given["parameter"])


def compared(
    model: nn.Module,
    files: list[Path],
    manager: Manager | None = None,
    weight_format: str = "safetensors",
    full: bool = False,
) -> list[Finding]:
    checkpoint = SimpleNamespace(weight_format=weight_format)
    plan: Any = SimpleNamespace(checkpoint=checkpoint, quantization=None, digest="abc")
    by: Any = manager or Manager()
    return compare_with_files(plan, files, model, by, Loading(), full=full)


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    def save(name: str, tensors: dict[str, torch.Tensor]) -> Path:
        save_file({key: tensor.detach().clone() for key, tensor in tensors.items()}, tmp_path / name)
        return tmp_path / name

    return save


def test_tensors_are_found_with_the_prefix_and_without(saved: Callable[..., Path]) -> None:
    model = Model()
    state = dict(model.named_parameters())
    one = saved("one", {"model.a.weight": state["model.a.weight"], "other": torch.zeros(1)})
    two = saved("two", {"b.weight": state["model.b.weight"], "model.head.weight": state["head.weight"]})
    manager = Manager()
    assert compared(model, [one, two], manager) == []
    homes = {id(layer.weight): layer for layer in (model.model["a"], model.model["b"], model.head)}
    assert len(manager.asked) == 3
    assert {id(call["parameter"]) for call in manager.asked} == homes.keys()
    assert all(call["module"] is homes[id(call["parameter"])] for call in manager.asked)
    assert all(torch.equal(call["stored"], call["parameter"]) for call in manager.asked)
    assert all(call["plan"].checkpoint.weight_format == "safetensors" for call in manager.asked)


def test_others_are_counted_and_the_first_three_named(saved: Callable[..., Path]) -> None:
    model = nn.Module()
    model.base_model_prefix = "model"  # type: ignore[assignment]
    for name in "abcdef":
        setattr(model, name, nn.Parameter(torch.zeros(2)))
    file = saved("x", {name: torch.full((2,), float(i)) for i, name in enumerate("abcdef")})
    (finding,) = compared(model, [file])
    head, _, named = finding.message.partition(": ")
    assert head == "5 of 6 compared tensors don't hold what the files have"
    differ = {f"{name} (off by up to {i})" for i, name in enumerate("abcdef") if i}
    assert len(set(named.split(", ")) & differ) == len(named.split(", ")) == 3
    assert msgspec.structs.replace(finding, message="") == Finding(
        "weights",
        "loadkit",
        "other-values",
        "",
        "the values in the files",
        "other values",
        remedy="something changed the weights while they were loaded; load again, and tell transformers' authors if it stays so",
    )


def test_what_a_plugin_says_of_its_tensors_counts(saved: Callable[..., Path]) -> None:
    model = Model()
    file = saved("x", {name: torch.full((2, 2), 9.0) for name, _ in model.named_parameters()})
    assert compared(model, [file], Manager(lambda parameter: "")) == []
    says = {id(model.head.weight): "codes differ", id(model.model["a"].weight): ""}
    (finding,) = compared(model, [file], Manager(lambda parameter: says.get(id(parameter), "")))
    assert finding.message.startswith("1 of 3 compared tensors")
    assert finding.message.endswith(": head.weight (codes differ)")


def test_a_note_where_nothing_could_be_compared(saved: Callable[..., Path]) -> None:
    model = Model()
    for file in (
        saved("named", {"x": torch.zeros(2, 2)}),
        saved("shaped", {"head.weight": torch.zeros(2, 3)}),
    ):
        (finding,) = compared(model, [file])
        assert (finding.code, finding.severity) == ("not-compared", "note")
        assert finding.message.startswith("no tensor could be compared with the files: all have other names")
        assert compared(model, [file], weight_format="pickle") == []
    (finding,) = compared(model, [])
    assert finding.code == "not-compared"


def test_what_is_split_in_no_one_piece_is_passed_over(saved: Callable[..., Path]) -> None:
    model = Model()
    model.head.weight.ds_shape = (2, 2)  # type: ignore[assignment]
    others = {name: p for name, p in model.named_parameters() if name != "head.weight"}
    assert compared(model, [saved("x", {**others, "head.weight": torch.full((2, 2), 9.0)})]) == []


# --- Which, and how much of each
# ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "rows"),
    [((5, 3), 3), ((5, 10), 1), ((5, 11), 1), ((40,), 10), ((5, 2, 2), 2), ((3, 0), 3), ((2, 2), 2)],
)
def test_as_many_whole_rows_as_hold_so_many_values(
    shape: tuple[int, ...], rows: int, saved: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = torch.rand(shape)
    with safe_open(saved("x", {"t": stored}), framework="pt") as file:
        assert torch.equal(_rows(file.get_slice("t"), Part(None), 10), stored[:rows])


def test_a_single_number_is_read_whole(saved: Callable[..., Path]) -> None:
    with safe_open(saved("x", {"t": torch.tensor(5.0)}), framework="pt") as file:
        assert _rows(file.get_slice("t"), Part(None), 10).item() == 5.0


def test_of_a_part_its_own_rows_are_read(saved: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    stored = torch.arange(48.0).reshape(8, 6)
    with safe_open(saved("x", {"t": stored}), framework="pt") as file:
        tensor = file.get_slice("t")
        assert torch.equal(_rows(tensor, Part(torch.empty(4, 6), (4, 0)), 12), stored[4:6])
        assert torch.equal(_rows(tensor, Part(torch.empty(1, 3), (7, 3)), 12), stored[7:8, 3:6])
        assert torch.equal(_rows(tensor, Part(torch.empty(9), (1,)), 12), stored[:2])  # of another rank


# --- What is different
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("held", "rows", "expected"),
    [
        ([[1.0, 2.0]], [[1.0, 2.0]], ""),
        ([[1.0, 2.0], [3.0, 4.0]], [[1.0, 2.0]], ""),
        ([[1.0, 2.0]], [[1.0, 2.5]], "off by up to 0.5"),
        ([[1.0, 2.0]], [[1.25, -1.0]], "off by up to 3"),
        ([[1.0, NAN]], [[1.0, NAN]], ""),
        ([[1.0, NAN]], [[3.0, NAN]], "off by up to 2"),
        ([[INF, 1.0]], [[INF, 1.0]], ""),
        ([[1.0, 2.0]], [[1.0, 2.0, 3.0]], None),
        ([[1.0, 2.0]], [[1.0, 2.0], [3.0, 4.0]], None),
        (1.0, 1.0, ""),
        (1.0, 2.0, "off by up to 1"),
        ([], [], ""),
    ],
)
def test_what_is_said_of_a_difference(held: Any, rows: Any, expected: str | None) -> None:
    assert _difference(nn.Parameter(torch.tensor(held)), torch.tensor(rows)) == expected


def test_a_value_that_isnt_a_number_is_a_difference() -> None:
    for held, rows in ((NAN, 2.0), (2.0, NAN), (INF, 2.0), (2.0, -INF)):
        assert _difference(nn.Parameter(torch.tensor([1.0, held])), torch.tensor([1.0, rows]))


def test_values_are_compared_in_the_models_dtype() -> None:
    held = nn.Parameter(torch.tensor([[1.0]], dtype=torch.bfloat16))
    assert _difference(held, torch.tensor([[1.001]])) == ""
    assert _difference(held, torch.tensor([[1.1]])) == "off by up to 0.102"


def test_codes_are_compared_with_codes_only() -> None:
    codes = nn.Parameter(torch.tensor([[1, 2, 3]], dtype=torch.uint8), requires_grad=False)
    assert _difference(codes, torch.tensor([[1, 2, 3]], dtype=torch.uint8)) == ""
    assert _difference(codes, torch.tensor([[1, 5, 6]], dtype=torch.uint8)) == "2 of 3 codes differ"
    assert _difference(codes, torch.tensor([[1.0, 2.0, 3.0]])) is None


def test_what_isnt_loaded_isnt_compared() -> None:
    assert _difference(nn.Parameter(torch.empty(1, 2, device="meta")), torch.zeros(1, 2)) is None


# --- All findings
# ------------------------------------------------------------------------------------------------------------


def test_errors_come_first_then_stages_codes_and_words() -> None:
    def finding(severity: Any, stage: str, code: str, message: str) -> Finding:
        return Finding(stage, "p", code, message, severity=severity)

    expected = [
        finding("error", "a", "y", "1"),
        finding("error", "a", "z", "1"),
        finding("error", "a", "z", "2"),
        finding("error", "b", "a", "0"),
        finding("warning", "a", "a", "0"),
        finding("note", "a", "a", "0"),
    ]
    asked: list[dict[str, Any]] = []

    def collect(hook: Any, kind: type, **given: Any) -> list[Finding]:
        assert (hook.__name__, kind) == ("loadkit_audit_model", Finding)
        asked.append(given)
        return expected[:3:-1]

    manager: Any = SimpleNamespace(collect=collect)
    plan = SimpleNamespace(quantized=None, adapters=None)
    values: Any = (plan, "model", "loading", "processing_class")
    assert audit(*values, manager, expected[3::-1]) == tuple(expected)
    names = ("plan", "model", "loading", "processing_class")
    assert asked == [dict(zip(names, values, strict=True))]
    assert audit(*values, manager) == tuple(expected[4:])
