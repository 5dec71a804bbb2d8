"""The shapes that a config gives, read off the source, are those of the model that transformers builds."""

from __future__ import annotations

import json
from typing import Any

import pytest
from examples import checkpoint, context_of

from loadkit.facts.library.shapes import expected_shapes
from loadkit.plugins import TensorHeader

MOVED = (
    "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size", "moe_intermediate_size",
    "num_experts", "num_local_experts", "n_routed_experts",
)  # fmt: skip


def built(model_type: str) -> tuple[dict[str, Any], str, dict[str, TensorHeader]] | None:
    """A tiny config, its class, and its tensors; None where transformers can't build it."""
    import torch
    from zoo.expected import model_types
    from zoo.shrinking import tiny_config
    from zoo.sweeping import _auto_class

    try:
        config = tiny_config(model_type)
        with torch.device("meta"):
            model = _auto_class(model_types()[model_type]).from_config(config, dtype=torch.bfloat16)
    except Exception:
        return None
    tensors = {name: TensorHeader("BF16", tuple(t.shape), 0, "a") for name, t in model.state_dict().items()}
    return json.loads(config.to_json_string(use_diff=False)), type(model).__name__, tensors


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_model_type() -> None:
    from zoo.expected import model_types

    wrong: dict[str, Any] = {}
    told: list[float] = []
    noticed = missed = 0
    for model_type in model_types():
        found = built(model_type)
        if found is None:
            continue
        config, name, tensors = found
        library = context_of(checkpoint(config, tensors=tensors)).library
        family = library.families.get(library.model_type_of(config))
        if family is None or family.config.sub_configs:
            continue
        shapes = expected_shapes(library, name, family.config, config, tensors)
        told.append(len(shapes) / len(tensors))
        if bad := {n: (s, tensors[n].shape) for n, s in shapes.items() if tensors[n].shape not in s}:
            wrong[model_type] = bad
        for field in MOVED:
            if isinstance(config.get(field), int):
                changed = {field: config[field] * 2}
                others = expected_shapes(library, name, family.config, config, tensors, changed)
                if any(tensors[n].shape not in s for n, s in others.items()):
                    noticed += 1
                else:
                    missed += 1
    assert wrong == {}
    assert len(told) > 150
    assert min(told) > 0
    assert sum(told) / len(told) > 0.55
    assert noticed > 3 * missed


@pytest.mark.parametrize(
    ("field", "value", "tensor"),
    [
        ("num_attention_heads", 8, "self_attn.q_proj"),
        ("num_key_value_heads", 1, "self_attn.k_proj"),
        ("intermediate_size", 64, "mlp.up_proj"),
        ("head_dim", 8, "self_attn.o_proj"),
        ("num_local_experts", 8, "block_sparse_moe.gate"),
    ],
)
def test_one_field_that_is_another(field: str, value: int, tensor: str) -> None:
    config = {
        "model_type": "mixtral" if "experts" in field else "mistral", "hidden_size": 64, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 128, "num_local_experts": 4,
    }  # fmt: skip
    name = f"model.layers.0.{tensor.replace('block_sparse_moe', 'mlp')}.weight"
    shapes = {
        "q_proj": (64, 64),
        "k_proj": (32, 64),
        "up_proj": (128, 64),
        "o_proj": (64, 64),
        "gate": (4, 64),
    }
    tensors = {name: TensorHeader("BF16", shapes[tensor.split(".")[-1]], 0, "a")}
    library = context_of(checkpoint(config, tensors=tensors)).library
    family = library.families[config["model_type"]]  # type: ignore[index]
    model = f"{family.config.name.removesuffix('Config')}ForCausalLM"
    assert expected_shapes(library, model, family.config, config, tensors)[name] == {tensors[name].shape}
    others = expected_shapes(library, model, family.config, {**config, field: value}, tensors)
    assert tensors[name].shape not in others[name]
