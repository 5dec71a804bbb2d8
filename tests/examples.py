"""Facts to test rules with: machines, topologies and checkpoints that aren't here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loadkit import (
    Accelerator,
    Checkpoint,
    Context,
    Machine,
    Plan,
    PlanError,
    PluginManager,
    Request,
    Topology,
)
from loadkit.facts.checkpoint.checkpoint import File
from loadkit.facts.library.index import read_library
from loadkit.planning.build_request import make_request
from loadkit.planning.pipeline import plan_context
from loadkit.plugins import Beside, ProcessingFacts, Template, TensorHeader

GIB = 2**30
PACKAGES = {
    "accelerate": "1.15.0",
    "bitsandbytes": "0.50.2",
    "peft": "0.21.2",
    "torch": "2.13.0",
    "transformers": "5.23.0",
}
FLASH = {**PACKAGES, "flash-attn": "2.8.3"}


def gpu(name: str, capability: tuple[int, int], gib: int, count: int = 1, **more: Any) -> Machine:
    accelerator = Accelerator(kind="cuda", name=name, capability=capability, memory=gib * GIB)
    return Machine(
        accelerators=(accelerator,) * count, memory=256 * GIB, cores=16, **{"packages": PACKAGES, **more}
    )


CPU = Machine(memory=24 * GIB, cores=2, packages=PACKAGES)
T4 = gpu("Tesla T4", (7, 5), 15)
A100 = gpu("NVIDIA A100-SXM4-80GB", (8, 0), 80)
A100_FLASH = gpu("NVIDIA A100-SXM4-80GB", (8, 0), 80, packages=FLASH)
H100_FLASH = gpu("NVIDIA H100 80GB HBM3", (9, 0), 80, packages={**FLASH, "flash-attn-3": "3.0.0"})
EIGHT_H100 = gpu("NVIDIA H100 80GB HBM3", (9, 0), 80, count=8, packages=FLASH)
MPS = Machine(
    accelerators=(Accelerator(kind="mps", name="Apple silicon"),),
    memory=64 * GIB,
    platform="darwin",
    packages=PACKAGES,
)

ALONE = Topology()
EIGHT_RANKS = Topology(world_size=8, rank=3, local_rank=3, local_world_size=8, engine="ddp")
TWO_NODES = Topology(world_size=16, rank=11, local_rank=3, local_world_size=8, engine="ddp")
FSDP = Topology(world_size=8, rank=3, local_rank=3, local_world_size=8, engine="fsdp")
FSDP2 = Topology(world_size=8, rank=3, local_rank=3, local_world_size=8, engine="fsdp2")
ZERO3 = Topology(world_size=8, rank=3, local_rank=3, local_world_size=8, engine="zero3")

MISTRAL = {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "dtype": "bfloat16"}
GEMMA3 = {
    "model_type": "gemma3",
    "architectures": ["Gemma3ForConditionalGeneration"],
    "dtype": "bfloat16",
    "text_config": {"model_type": "gemma3_text"},
    "vision_config": {"model_type": "siglip_vision_model"},
}
NF4 = {
    "quant_method": "bitsandbytes",
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": "bfloat16",
    "bnb_4bit_quant_storage": "uint8",
}

TOKENIZER = ProcessingFacts(
    location="a/b",
    commit="0123456789abcdef0123456789abcdef01234567",
    files=("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
    tokenizer_config={"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"},
    chat_template="{{ messages }}",
    added_tokens={"<pad>": 0, "</s>": 1, "<unk>": 2},
)

LINEARS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)


def checkpoint(config: Mapping[str, Any] = MISTRAL, *, stored: str = "BF16", **more: Any) -> Checkpoint:
    """A checkpoint of two layers in the usual layout, with a tokenizer; `stored` is its files' dtype."""
    names = [
        "model.embed_tokens",
        "model.norm",
        "lm_head",
        *(f"model.layers.{i}.{n}" for i in (0, 1) for n in LINEARS),
    ]
    packed = LINEARS if config.get("quantization_config") else ()
    tensors = {
        f"{n}.weight": TensorHeader(
            "U8" if n.endswith(tuple(packed)) else stored, (64, 64), 64 * 64 * 2, "model.safetensors"
        )
        for n in names
    }
    files = (File(name="config.json"), File(name="model.safetensors"), File(name="tokenizer.json"))
    facts: dict[str, Any] = {
        "source": "a/b",
        "location": "a/b",
        "kind": "hub",
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "config": dict(config),
        "files": files,
        "tensors": tensors,
        "weight_files": ("model.safetensors",),
        "weight_format": "safetensors",
        "processing": TOKENIZER,
    }
    return Checkpoint(**{**facts, **more})


def planned(
    facts: Checkpoint | None = None,
    profile: str | None = None,
    *,
    machine: Machine = CPU,
    topology: Topology = ALONE,
    manager: PluginManager | None = None,
    beside: Beside | None = None,
    **options: Any,
) -> Plan:
    """The plan for given facts, without reading any."""
    facts = facts or checkpoint()
    manager = manager or PluginManager(environ={})
    request, problems = make_request(facts.source, profile, options, manager)
    context = context_of(
        facts,
        request=request,
        beside=beside or _beside(facts, options),
        machine=machine,
        topology=topology,
        architectures={name: item for name, (_, item) in manager.architectures.found.items()},
    )
    return plan_context(context, manager, problems)


def context_of(facts: Checkpoint, **more: Any) -> Context:
    """What plugins may know of a checkpoint; on a machine without accelerators, unless one is given."""
    about = {"request": Request(source=facts.source), "machine": CPU, "topology": ALONE, **more}
    return Context(checkpoint=facts, library=read_library(facts.config), **about)


def _beside(facts: Checkpoint, options: Mapping[str, Any]) -> Beside:
    """What would be read beside the checkpoint: a template given as text, and the source's own adapter."""
    text = options.get("chat_template")
    adapter = facts.adapter
    return Beside(
        template=Template(text=text) if isinstance(text, str) else None,
        adapters={} if adapter is None else {"default": adapter},
    )


def problems(*args: Any, **kwargs: Any) -> dict[str, str]:
    """Code to text of every problem of a plan that can't be made."""
    try:
        made = planned(*args, **kwargs)
    except PlanError as error:
        return {p.code: f"{p.message} | {p.remedy}" for p in error.problems}
    raise AssertionError(f"a plan was made:\n{made}")
