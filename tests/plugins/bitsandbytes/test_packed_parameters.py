"""Packed parameters: bitsandbytes' own bits a unit, products equal to those with the unpacked values, and
modules that keep them whatever is done to a model."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import bitsandbytes.functional as bnb
import pytest
import torch
from torch.nn import functional

from loadkit_plugins.bitsandbytes.packed import codec, modules
from loadkit_plugins.bitsandbytes.packed.layout import Layout

SETTINGS: dict[str, dict[str, Any]] = {
    "nf4": {"bits": 4, "quant_type": "nf4"},
    "fp4": {"bits": 4, "quant_type": "fp4"},
    "nested": {"bits": 4, "quant_type": "nf4", "nested": True},
    "bf16 storage": {"bits": 4, "quant_type": "nf4", "nested": True, "storage": "bfloat16"},
    "8 bits": {"bits": 8},
}


class Stack(torch.nn.Module):
    """What models have: a stack, a bias beside it, and a forward pass that knows nothing of packing."""

    def __init__(self, values: torch.Tensor) -> None:
        super().__init__()
        self.experts = torch.nn.Parameter(values, requires_grad=False)
        self.bias = torch.nn.Parameter(torch.zeros(values.shape[0], values.shape[1], dtype=values.dtype))

    def forward(self, x: torch.Tensor, expert: int) -> torch.Tensor:
        return functional.linear(x, self.experts[expert], self.bias[expert])


def values(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return (torch.randn(*shape, generator=generator) * 0.1).to(dtype)


def carried(stack: torch.Tensor, units: int | None = None, **settings: Any) -> Any:
    layout = Layout(
        shape=tuple(stack.shape), units=units or stack.shape[0], dtype=str(stack.dtype)[6:], **settings
    )
    module = Stack(stack)
    modules.carry(module, {"experts": (layout, codec.pack(iter(stack.view(layout.stacked)), layout, "cpu"))})
    return module


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("shape", [(3, 32, 64), (3, 24, 10)], ids=["whole blocks", "short last block"])
def test_each_unit_has_the_bits_that_it_would_have_alone(
    settings: dict[str, Any], shape: tuple[int, ...]
) -> None:
    stack = values(*shape)
    module = carried(stack, **settings)
    (packed,) = modules.packed(module)
    assert codec.empty(packed.layout, "cpu")[codec.DATA].nbytes == packed.layout.data_bytes
    beside = sum(tensor.nbytes for tensor in module.packed_companions.values())
    assert beside == packed.layout.companion_bytes
    for unit, matrix in enumerate(stack):
        tensors = module.experts.tensors
        held = codec.unit_codes(tensors, packed.layout, unit)
        if settings["bits"] == 8:
            codes, scales, _ = bnb.int8_vectorwise_quant(matrix.to(torch.float16))
            assert torch.equal(held, codes)
            assert torch.equal(tensors["scales"][unit], scales)
            continue
        codes, state = bnb.quantize_4bit(
            matrix.contiguous(), blocksize=64, compress_statistics=settings.get("nested", False),
            quant_type=settings["quant_type"], quant_storage=getattr(torch, settings.get("storage", "uint8")),
        )  # fmt: skip
        assert torch.equal(held.view(torch.uint8), codes.view(torch.uint8))
        ours = codec.quant_state(tensors, packed.layout, unit)
        assert torch.equal(ours.absmax, state.absmax)
        assert torch.equal(module.experts[unit].unpacked(), bnb.dequantize_4bit(codes, state))


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_products_and_their_gradients_equal_those_with_the_unpacked_values(settings: dict[str, Any]) -> None:
    stack = values(4, 32, 64)
    packed = carried(stack, **settings).experts
    plain = packed.unpacked()
    batch = values(4, 5, 64)
    left = values(4, 5, 32)
    cases = {
        "linear": (batch[0], lambda x, w: functional.linear(x, w[2])),
        "with a bias": (batch[0], lambda x, w: functional.linear(x, w[2], values(32))),
        "three axes": (batch, lambda x, w: functional.linear(x, w[1])),
        "matmul": (left[0], lambda x, w: x @ w[torch.tensor(3)]),
        "turned": (batch[0], lambda x, w: x @ w[0].T),
        "turned twice": (left[0], lambda x, w: x.matmul(w.transpose(1, 2)[1].mT)),
        "bmm": (left, lambda x, w: torch.bmm(x, w)),
        "bmm, turned": (batch, lambda x, w: torch.bmm(x, w.transpose(1, 2))),
        "a slice": (batch[0], lambda x, w: functional.linear(x, w[0][:16])),
        "from the right": (batch[0].T.contiguous(), lambda x, w: w[0] @ x),
        "einsum": (batch, lambda x, w: torch.einsum("ebi,eoi->ebo", x, w)),
        "baddbmm": (left, lambda x, w: torch.baddbmm(values(4, 1, 64), x, w)),
        "several by index": (batch, lambda x, w: torch.bmm(w[torch.tensor([1, 1, 3, 0])], x.mT)),
        "of another dtype": (batch[0].float(), lambda x, w: functional.linear(x.to(w.dtype), w[0]).float()),
        "unbound": (batch[0], lambda x, w: sum(functional.linear(x, one) for one in w.unbind())),
        "nothing to multiply": (batch[0][:0], lambda x, w: functional.linear(x, w[0])),
    }
    for name, (x, product) in cases.items():
        results = []
        for weight in (packed, plain):
            given = x.clone().requires_grad_()
            result = product(given, weight)
            result.float().pow(2).sum().backward()
            results.append((result.detach(), given.grad))
        (ours, our_gradient), (theirs, their_gradient) = results
        assert torch.equal(ours, theirs), name
        assert ours.dtype == theirs.dtype
        assert torch.equal(our_gradient, their_gradient), name


def test_a_product_keeps_no_unpacked_weight_for_the_backward_pass() -> None:
    """What is kept is what a plain frozen layer keeps of its activations at most."""
    module = carried(values(4, 64, 64), bits=4)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        module(values(3, 64).requires_grad_(), 1).sum()
    assert sum(kept) <= 3 * 64


def test_flat_stacks_are_seen_by_their_experts() -> None:
    flat = values(4 * 32, 64)
    layout = Layout(shape=(128, 64), units=4, bits=4, dtype="bfloat16", nested=True)
    module = Stack(values(4, 32, 64))
    modules.carry(module, {"experts": (layout, codec.pack(iter(flat.view(4, 32, 64)), layout, "cpu"))})
    weight: Any = module.experts
    assert weight.shape == (128, 64)
    one = weight.view(-1, 32, 64)[2]
    assert one.unit == 2
    assert torch.equal(one.unpacked(), weight.unpacked()[64:96])


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_what_is_done_to_models_leaves_the_codes_alone(settings: dict[str, Any]) -> None:
    module = carried(values(3, 32, 64), **settings)
    before, x = module.experts.unpacked(), values(2, 64)
    for change in (lambda m: m.to(torch.float32), lambda m: m.half(), copy.deepcopy, _pickled):
        again = change(copy.deepcopy(module))
        assert type(again).__name__ == "Stack"
        assert isinstance(again, Stack)
        assert torch.equal(again.experts.unpacked(), before)
        assert again.bias.dtype in (torch.bfloat16, torch.float32, torch.float16)
    other = carried(values(3, 32, 64) * 2, **settings)
    assert not torch.equal(other.experts.unpacked(), before)
    other.load_state_dict(module.state_dict())
    assert torch.equal(other.experts.unpacked(), before)
    assert torch.equal(other(x, 1), module(x, 1))
    with pytest.raises(RuntimeError, match="experts_scales"):
        other.load_state_dict({k: v for k, v in module.state_dict().items() if not k.endswith("_scales")})
    modules.uncarry(other)
    assert type(other) is Stack
    assert torch.equal(other.experts, before)


def test_an_expert_that_isnt_there_is_an_error() -> None:
    module = carried(values(3, 32, 64), bits=4)
    with pytest.raises(IndexError, match="expert 3 of 3"):
        module.experts[3]
    layout = Layout(shape=(3, 32, 64), units=3, bits=4, dtype="bfloat16")
    with pytest.raises(ValueError, match="2 units instead of 3"):
        codec.pack(iter(values(2, 32, 64)), layout, "cpu")
    with pytest.raises(ValueError, match="unit 1"):
        codec.pack(iter([values(32, 64), values(32, 32), values(32, 64)]), layout, "cpu")


def _pickled(module: Any) -> Any:
    return pickle.loads(pickle.dumps(module))
