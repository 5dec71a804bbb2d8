"""What the audit says of values, for every dtype that a checkpoint may have."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from loadkit_plugins.weights.values import LOOKED_AT, values

DTYPES = [d for d in vars(torch).values() if isinstance(d, torch.dtype) and d.is_floating_point]
WITHOUT_NAN = {torch.float4_e2m1fn_x2}


PLAN: Any = SimpleNamespace(placement=SimpleNamespace(device_map=None))


def holding(**parameters: torch.Tensor) -> torch.nn.Module:
    model = torch.nn.Module()
    for name, tensor in parameters.items():
        model.register_parameter(name, torch.nn.Parameter(tensor, requires_grad=False))
    return model


def ones(dtype: torch.dtype, count: int = LOOKED_AT) -> torch.Tensor:
    if dtype in WITHOUT_NAN:
        return torch.full((count,), 0x22, dtype=torch.uint8).view(dtype)
    return torch.ones(count).to(dtype)


@pytest.mark.parametrize("dtype", dict.fromkeys(DTYPES), ids=str)
def test_numbers_are_fine(dtype: torch.dtype) -> None:
    assert values(PLAN, holding(one=ones(dtype), other=ones(dtype, 0), third=ones(torch.float32))) == []


@pytest.mark.parametrize("dtype", [d for d in dict.fromkeys(DTYPES) if d not in WITHOUT_NAN], ids=str)
def test_what_isnt_a_number_is_named(dtype: torch.dtype) -> None:
    wrong = torch.ones(LOOKED_AT)
    wrong[-1] = float("nan")
    model = holding(fine=ones(dtype), wrong=wrong.to(dtype), other=ones(torch.float32), more=ones(dtype))
    (finding,) = values(PLAN, model)
    assert finding.code == "not-finite"
    assert finding.message.startswith("1 tensors")
    assert finding.message.endswith(": wrong")


@pytest.mark.parametrize(
    ("value", "wrong"), [(float("nan"), True), (float("inf"), True), (-float("inf"), False), (1.0, False)]
)
def test_buffers_are_looked_at_and_masks_are_fine(value: float, wrong: bool) -> None:
    model = holding(fine=ones(torch.float32))
    model.register_buffer("inverse_frequencies", torch.tensor([1.0, value]), persistent=False)
    assert [f.code for f in values(PLAN, model)] == ["not-finite"] * wrong


def test_a_device_without_values_is_as_asked() -> None:
    model = holding(one=torch.ones(2, device="meta"))
    assert [f.code for f in values(PLAN, model)] == ["on-meta"]
    for device_map in ("meta", {"": "meta"}):
        plan: Any = SimpleNamespace(placement=SimpleNamespace(device_map=device_map))
        assert values(plan, model) == []
