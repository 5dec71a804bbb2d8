"""What the audit says of values, for every dtype that a checkpoint may have."""

from __future__ import annotations

import pytest
import torch

from loadkit_plugins.weights.values import LOOKED_AT, values

DTYPES = [d for d in vars(torch).values() if isinstance(d, torch.dtype) and d.is_floating_point]
WITHOUT_NAN = {torch.float4_e2m1fn_x2}


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
    assert values(holding(one=ones(dtype), other=ones(dtype, 0), third=ones(torch.float32))) == []


@pytest.mark.parametrize("dtype", [d for d in dict.fromkeys(DTYPES) if d not in WITHOUT_NAN], ids=str)
def test_what_isnt_a_number_is_named(dtype: torch.dtype) -> None:
    wrong = torch.ones(LOOKED_AT)
    wrong[-1] = float("nan")
    model = holding(fine=ones(dtype), wrong=wrong.to(dtype), other=ones(torch.float32), more=ones(dtype))
    (finding,) = values(model)
    assert finding.code == "not-finite"
    assert finding.message.startswith("1 tensors")
    assert finding.message.endswith(": wrong")
