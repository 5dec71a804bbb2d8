"""Plans for large mixtures of experts, from configs and headers alone: the table of the page on them.

The headers are made here, with the names, dtypes and shapes that the published files have; the weights are
holes in sparse files, which nothing reads. `python docs/moe_plans.py` writes the table into the page.
"""

from __future__ import annotations

import json
import math
import re
import struct
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import loadkit
from loadkit.plugins import size

PAGE = Path(__file__).parent / "how-to" / "quantize-again.md"
MARKS = ("<!-- plans: made by docs/moe_plans.py -->", "<!-- end of plans -->")

SIZES = {"BF16": 2, "F32": 4, "F8_E4M3": 1, "U8": 1}
BLOCK = 128

Tensors = Iterator[tuple[str, str, tuple[int, ...]]]


class Large(NamedTuple):
    """A model: its config, and how its files name what they hold."""

    name: str
    stored: str
    config: Mapping[str, Any]


COMMON = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "torch_dtype": "bfloat16", "tie_word_embeddings": False}

MIXTRAL = {
    **COMMON, "model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "vocab_size": 32000, "hidden_size": 4096,
    "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "num_local_experts": 8, "num_experts_per_tok": 2, "max_position_embeddings": 32768, "rope_theta": 1e6,
}  # fmt: skip
QWEN3 = {
    **COMMON, "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "vocab_size": 151936, "hidden_size": 4096,
    "intermediate_size": 12288, "moe_intermediate_size": 1536, "num_hidden_layers": 94, "num_attention_heads": 64,
    "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8, "decoder_sparse_step": 1,
    "norm_topk_prob": True, "mlp_only_layers": [], "max_position_embeddings": 40960, "rope_theta": 1e6,
}  # fmt: skip
DEEPSEEK = {
    **COMMON, "model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"], "vocab_size": 129280, "hidden_size": 7168,
    "intermediate_size": 18432, "moe_intermediate_size": 2048, "num_hidden_layers": 61, "num_attention_heads": 128,
    "num_key_value_heads": 128, "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128,
    "v_head_dim": 128, "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8, "first_k_dense_replace": 3,
    "n_group": 8, "topk_group": 4, "norm_topk_prob": True, "routed_scaling_factor": 2.5, "max_position_embeddings": 163840,
    "rope_theta": 10000, "num_nextn_predict_layers": 1,
    "quantization_config": {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]},
}  # fmt: skip
GPT_OSS = {
    **COMMON, "model_type": "gpt_oss", "architectures": ["GptOssForCausalLM"], "vocab_size": 201088, "hidden_size": 2880,
    "intermediate_size": 2880, "num_hidden_layers": 36, "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64,
    "num_local_experts": 128, "num_experts_per_tok": 4, "attention_bias": True, "max_position_embeddings": 131072,
    "layer_types": ["sliding_attention", "full_attention"] * 18, "sliding_window": 128, "rope_theta": 150000,
    "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]},
}  # fmt: skip

MODELS = (
    Large("Mixtral-8x7B", "bfloat16", MIXTRAL),
    Large("gpt-oss-120b", "mxfp4", GPT_OSS),
    Large("Qwen3-235B-A22B", "bfloat16", QWEN3),
    Large("DeepSeek-V3", "fp8", DEEPSEEK),
)

MACHINES = ("1xH100-80GB", "2xH100-80GB", "4xH100-80GB", "8xH100-80GB")
"""Tried one after the other, by name: the first that a model fits is named in the table."""

PROFILES = ("inference-4bit", "qlora")


def tensors_of(model: Large) -> Tensors:
    """Every tensor of the files: name, dtype, shape."""
    c = model.config
    hidden, vocabulary = c["hidden_size"], c["vocab_size"]
    yield "model.embed_tokens.weight", "BF16", (vocabulary, hidden)
    for number in range(c["num_hidden_layers"] + (c["model_type"] == "deepseek_v3")):
        at = f"model.layers.{number}."
        yield from ((at + name, dtype, shape) for name, dtype, shape in LAYERS[c["model_type"]](c, number))
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{at}{norm}.weight", "BF16", (hidden,)
    yield "model.norm.weight", "BF16", (hidden,)
    yield "lm_head.weight", "BF16", (vocabulary, hidden)


def _attention(c: Mapping[str, Any]) -> Tensors:
    hidden, wide = c["hidden_size"], c.get("head_dim", c["hidden_size"] // c["num_attention_heads"])
    heads, pairs = c["num_attention_heads"] * wide, c["num_key_value_heads"] * wide
    for name, rows, columns in (
        ("q", heads, hidden),
        ("k", pairs, hidden),
        ("v", pairs, hidden),
        ("o", hidden, heads),
    ):
        yield f"self_attn.{name}_proj.weight", "BF16", (rows, columns)
        if c.get("attention_bias"):
            yield f"self_attn.{name}_proj.bias", "BF16", (rows,)


def _mixtral(c: Mapping[str, Any], number: int) -> Tensors:
    hidden, inner, experts = c["hidden_size"], c["intermediate_size"], c["num_local_experts"]
    yield from _attention(c)
    yield "block_sparse_moe.gate.weight", "BF16", (experts, hidden)
    for expert in range(experts):
        for name, shape in (("w1", (inner, hidden)), ("w2", (hidden, inner)), ("w3", (inner, hidden))):
            yield f"block_sparse_moe.experts.{expert}.{name}.weight", "BF16", shape


def _qwen3(c: Mapping[str, Any], number: int) -> Tensors:
    yield from _attention(c)
    for name in ("q_norm", "k_norm"):
        yield f"self_attn.{name}.weight", "BF16", (c["head_dim"],)
    yield "mlp.gate.weight", "BF16", (c["num_experts"], c["hidden_size"])
    for expert in range(c["num_experts"]):
        yield from _gated(f"mlp.experts.{expert}.", c["hidden_size"], c["moe_intermediate_size"])


def _gated(at: str, hidden: int, inner: int) -> Tensors:
    for name, shape in (("gate", (inner, hidden)), ("up", (inner, hidden)), ("down", (hidden, inner))):
        yield f"{at}{name}_proj.weight", "BF16", shape


def _deepseek(c: Mapping[str, Any], number: int) -> Tensors:
    hidden, heads, ranks = c["hidden_size"], c["num_attention_heads"], (c["q_lora_rank"], c["kv_lora_rank"])
    turned, plain, values = c["qk_rope_head_dim"], c["qk_nope_head_dim"], c["v_head_dim"]
    matrices = {
        "q_a_proj": (ranks[0], hidden),
        "q_b_proj": (heads * (plain + turned), ranks[0]),
        "kv_a_proj_with_mqa": (ranks[1] + turned, hidden),
        "kv_b_proj": (heads * (plain + values), ranks[1]),
        "o_proj": (hidden, heads * values),
    }
    layers: list[tuple[str, str, tuple[int, ...]]] = []
    layers += [(f"self_attn.{name}.weight", "BF16", shape) for name, shape in matrices.items()]
    if number < c["first_k_dense_replace"]:
        layers += _gated("mlp.", hidden, c["intermediate_size"])
    else:
        layers += _gated("mlp.shared_experts.", hidden, c["moe_intermediate_size"] * c["n_shared_experts"])
        for expert in range(c["n_routed_experts"]):
            layers += _gated(f"mlp.experts.{expert}.", hidden, c["moe_intermediate_size"])
        yield "mlp.gate.weight", "BF16", (c["n_routed_experts"], hidden)
        yield "mlp.gate.e_score_correction_bias", "F32", (c["n_routed_experts"],)
    for name, _, (rows, columns) in layers:  # type: ignore[misc]
        yield name, "F8_E4M3", (rows, columns)
        yield f"{name}_scale_inv", "F32", (-(-rows // BLOCK), -(-columns // BLOCK))
    yield "self_attn.q_a_layernorm.weight", "BF16", (ranks[0],)
    yield "self_attn.kv_a_layernorm.weight", "BF16", (ranks[1],)
    if number == c["num_hidden_layers"]:  # what predicts one token more, which transformers leaves out
        for name, shape in (("enorm", (hidden,)), ("hnorm", (hidden,)), ("eh_proj", (hidden, 2 * hidden))):
            yield f"{name}.weight", "BF16", shape
        for name in ("embed_tokens", "shared_head.head"):
            yield f"{name}.weight", "BF16", (c["vocab_size"], hidden)
        yield "shared_head.norm.weight", "BF16", (hidden,)


def _gpt_oss(c: Mapping[str, Any], number: int) -> Tensors:
    hidden, inner, experts = c["hidden_size"], c["intermediate_size"], c["num_local_experts"]
    yield from _attention(c)
    yield "self_attn.sinks", "BF16", (c["num_attention_heads"],)
    yield "mlp.router.weight", "BF16", (experts, hidden)
    yield "mlp.router.bias", "BF16", (experts,)
    for name, rows, columns in (("gate_up", 2 * inner, hidden), ("down", hidden, inner)):
        yield f"mlp.experts.{name}_proj_blocks", "U8", (experts, rows, columns // 32, 16)
        yield f"mlp.experts.{name}_proj_scales", "U8", (experts, rows, columns // 32)
        yield f"mlp.experts.{name}_proj_bias", "BF16", (experts, rows)


def _mistral(c: Mapping[str, Any], number: int) -> Tensors:
    yield from _attention(c)
    yield from _gated("mlp.", c["hidden_size"], c["intermediate_size"])


LAYERS = {
    "mistral": _mistral,
    "mixtral": _mixtral,
    "qwen3_moe": _qwen3,
    "deepseek_v3": _deepseek,
    "gpt_oss": _gpt_oss,
}


def write(model: Large, folder: Path) -> Path:
    """Write a model's config, and a file with its headers over a hole."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(model.config))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, dtype, shape in tensors_of(model):
        start, end = end, end + math.prod(shape) * SIZES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return folder


def rows(folder: Path) -> Iterator[str]:
    """The lines of the table."""
    heads = ["model", "files", "in 16 bits", "4 bits in linear layers alone", "4 bits in experts too"]
    yield "| " + " | ".join([*heads, *(f"`{profile}` needs" for profile in PROFILES)]) + " |"
    yield "|---" * (len(heads) + len(PROFILES)) + "|"
    for model in MODELS:
        source = write(model, folder / model.name)
        of_all = planned(source, MACHINES[-1], "inference-4bit")
        cells = [
            f"{model.name}, {model.stored}",
            size((source / "model.safetensors").stat().st_size),
            size(2 * _count(model)),
            size(_without_experts(source) or 2 * _count(model)),
            size(_model_bytes(of_all)),
            *(first_that_fits(source, profile) for profile in PROFILES),
        ]
        yield "| " + " | ".join(cells) + " |"


def planned(source: Path, machine: str, profile: str, **options: Any) -> loadkit.Plan:
    """A plan that spreads over a machine's devices."""
    return loadkit.plan(source, profile, machine=machine, device_map="auto", **options)


def _without_experts(source: Path) -> int:
    """The model's bytes where linear layers alone are in 4 bits; 0 where there are none to be."""
    try:
        return _model_bytes(
            planned(source, MACHINES[-1], "inference-4bit", check_memory=False, skip_modules=["experts"])
        )
    except loadkit.PlanError as error:
        if "nothing-to-quantize" not in {problem.code for problem in error.problems}:
            raise
        return 0


def _model_bytes(plan: loadkit.Plan) -> int:
    assert plan.memory is not None
    return plan.memory.model


def _count(model: Large) -> int:
    """Weights that the model holds."""
    last = f"model.layers.{model.config['num_hidden_layers']}."
    several = {"U8": 2}
    return sum(
        math.prod(shape) * several.get(dtype, 1)
        for name, dtype, shape in tensors_of(model)
        if not name.startswith(last) and not name.endswith(("_scale_inv", "_scales"))
    )


def first_that_fits(source: Path, profile: str) -> str:
    """The first machine whose devices hold a plan together, weights and what training adds, without what is
    computed; in words."""
    for machine in MACHINES:
        plan = planned(source, machine, profile, check_memory=False)
        number, _, name = machine.partition("x")
        room = int(number) * int(name.partition("-")[2].removesuffix("GB")) * 2**30
        if plan.memory is not None and plan.memory.total < room:
            return f"{machine.replace('x', ' × ')} ({size(plan.memory.total)})"
    raise SystemExit(f"{source.name} fits none of {', '.join(MACHINES)}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        table = "\n".join(rows(Path(folder)))
    sys.stdout.write(table + "\n")
    text = PAGE.read_text()
    begin, end = MARKS
    PAGE.write_text(re.sub(f"{begin}.*{end}", lambda _: f"{begin}\n{table}\n{end}", text, flags=re.DOTALL))
