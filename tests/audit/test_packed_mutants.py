"""Packed experts that aren't what was planned or stored, each caught by the check that is for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from zoo.sweeping import make

import loadkit
from loadkit_plugins.bitsandbytes.packed import codec, modules, quantizer
from loadkit_plugins.bitsandbytes.packed.layout import Layout

Tiny = Callable[..., Path]

STACK = "model.layers.1.mlp.experts"


def stack(model: Any) -> Any:
    return model.get_submodule(STACK)


def an_expert_left_in_16_bits(model: Any) -> None:
    modules.uncarry(stack(model))


def two_experts_swapped(model: Any) -> None:
    held = stack(model)._parameters["down_proj"].data
    units = held.view(4, -1)
    units[[0, 1]] = units[[1, 0]]


def the_last_two_experts_swapped(model: Any) -> None:
    module = stack(model)
    for tensor in (module._parameters["gate_up_proj"].data.view(4, -1), *companions(module, "gate_up_proj")):
        tensor[[2, 3]] = tensor[[3, 2]]


def scales_of_the_neighbour(model: Any) -> None:
    for tensor in companions(stack(model), "down_proj"):
        tensor[[1, 2]] = tensor[[2, 1]]


def a_byte_of_one_expert(model: Any) -> None:
    stack(model)._parameters["gate_up_proj"].data.view(torch.uint8).view(4, -1)[3, 5] ^= 1


def scales_of_too_few_blocks(model: Any) -> None:
    beside = stack(model).packed_companions
    beside["down_proj_scales"] = beside["down_proj_scales"][:, :-1]


def a_scale_that_is_no_number(model: Any) -> None:
    name = next(n for n, t in stack(model).packed_companions.items() if t.is_floating_point())
    stack(model).packed_companions[name].view(-1)[0] = float("nan")


def a_quantized_router(model: Any) -> None:
    router = model.model.layers[0].mlp.gate
    values = router.weight.data
    layout = Layout(shape=tuple(values.shape), units=1, bits=4, dtype="bfloat16", nested=True)
    modules.carry(router, {"weight": (layout, codec.pack(iter([values]), layout, "cpu"))})


def other_forward(model: Any) -> None:
    model.config._experts_implementation_internal = "eager"


def companions(module: Any, name: str) -> list[torch.Tensor]:
    return [tensor for key, tensor in module.packed_companions.items() if key.startswith(name)]


@pytest.fixture
def after_loading(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Any], None]], None]:
    """Has something done to models as soon as transformers has loaded them."""

    def install(wrong: Callable[[Any], None]) -> None:
        for kind in quantizer.QUANTIZERS.values():
            monkeypatch.setattr(kind, "postprocess_model", lambda own, model, f=kind.postprocess_model, **given: (f(own, model, **given), wrong(model))[0])  # fmt: skip

    return install


CAUGHT_BY = {
    an_expert_left_in_16_bits: "left-unpacked",
    two_experts_swapped: "other-values",
    the_last_two_experts_swapped: "other-values",
    scales_of_the_neighbour: "other-values",
    a_byte_of_one_expert: "other-values",
    scales_of_too_few_blocks: "packed-misshapen",
    a_scale_that_is_no_number: "scales-not-finite",
    a_quantized_router: "packed-unplanned",
    other_forward: "experts-run-otherwise",
}

EIGHT_BITS = (an_expert_left_in_16_bits, two_experts_swapped, scales_of_the_neighbour)


@pytest.mark.parametrize(
    ("wrong", "profile"),
    [*((wrong, "inference-4bit") for wrong in CAUGHT_BY), *((wrong, "qlora-8bit") for wrong in EIGHT_BITS)],
    ids=lambda each: getattr(each, "__name__", each),
)
def test_packed_experts_that_are_wrong_are_caught(
    wrong: Callable[[Any], None],
    profile: str,
    tiny: Tiny,
    after_loading: Callable[[Callable[[Any], None]], None],
) -> None:
    folder = tiny("mixtral")
    after_loading(wrong)
    with pytest.raises(loadkit.AuditError) as caught:
        loadkit.load(folder, profile)
    assert CAUGHT_BY[wrong] in {f.code for f in caught.value.findings if f.severity == "error"}


def test_nothing_is_wrong_with_packed_experts_as_they_are(tiny: Tiny) -> None:
    loaded = loadkit.load(tiny("mixtral"), "qlora-8bit")
    assert loaded.report.findings == ()
    assert {each.name for each in modules.packed(loaded.model)} == {"gate_up_proj", "down_proj"}


def experts_of_a_renamed_stack_swapped(model: Any) -> None:
    held = model.get_submodule("model.layers.1.block_sparse_moe.experts")._parameters["down_proj"].data
    units = held.view(4, -1)
    units[[0, 1]] = units[[1, 0]]


def a_kept_stack_with_two_experts_swapped(model: Any) -> None:
    values = model.model.layers[0].mlp.experts.down_proj.data
    values[[0, 1]] = values[[1, 0]]


@pytest.mark.parametrize(
    ("wrong", "options"),
    [
        (experts_of_a_renamed_stack_swapped, {}),  # the files call it output_linear
        (a_kept_stack_with_two_experts_swapped, {"skip_modules": ["layers.0.mlp.experts"]}),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_stacks_are_compared_by_whatever_name_the_files_have(
    wrong: Callable[[Any], None],
    options: dict[str, Any],
    tiny: Tiny,
    tmp_path: Path,
    after_loading: Callable[[Callable[[Any], None]], None],
) -> None:
    if options:
        folder = tiny("mixtral")
    else:
        folder = tmp_path / "granitemoe"
        assert make("granitemoe", folder) == ""
    loaded = loadkit.load(folder, "inference-4bit", verify="full", quantized_cache=False, **options)
    assert "not-compared" not in {f.code for f in loaded.report.findings}
    after_loading(wrong)
    with pytest.raises(loadkit.AuditError) as caught:
        loadkit.load(folder, "inference-4bit", verify="full", quantized_cache=False, **options)
    assert "other-values" in {f.code for f in caught.value.findings}
