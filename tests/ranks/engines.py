"""Loss and gradients under each engine, as a launched process computes them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, distribute_tensor

import loadkit

DEVICE = os.environ.get("LOADKIT_TEST_DEVICE", "cpu")
BACKEND = "nccl" if DEVICE == "cuda" else "gloo"
__all__ = ["BATCH", "engines", "gradients", "load_as", "step", "stirred", "tokens"]

BATCH, LENGTH = 4, 16
ZERO3 = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}


def tokens(vocabulary: int) -> torch.Tensor:
    """The whole batch: each rank takes its rows."""
    return torch.randint(5, vocabulary - 8, (BATCH, LENGTH), generator=torch.Generator().manual_seed(7))


def step(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """One forward and backward pass; dropout is off, so that its numbers needn't be the same."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    return loss.detach()


def load_as(folder: str, profile: str, **options: Any) -> loadkit.Loaded:
    """Load with another seed on every rank: what is drawn must be rank 0's all the same. "qlora+experts"
    adapts experts too."""
    torch.manual_seed(int(os.environ.get("RANK", "0")))
    profile, _, experts = profile.partition("+")
    return loadkit.load(folder, profile, **options, **({"lora_experts": True} if experts else {}))


def stirred(model: Any, names: str = "lora_B") -> Any:
    """Give an adapter's tensors values that follow from their names: at lora_B's zeros no gradient would
    reach lora_A."""
    for name, parameter in model.named_parameters():
        if names in name:
            name = name.removeprefix("module.")
            seed = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)
            noise = 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
            noise = noise.to(parameter.device, parameter.dtype)
            split = isinstance(parameter, DTensor)
            parameter.data.copy_(
                distribute_tensor(noise, parameter.device_mesh, parameter.placements) if split else noise
            )
    return model


def adapters_hash(model: Any) -> str:
    """SHA-256 of an adapter's tensors as they were initialised."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            digest.update(name.encode() + whole(parameter).float().cpu().numpy().tobytes())
    return digest.hexdigest()


def gradients(model: Any) -> dict[str, torch.Tensor]:
    """Whole gradients, by the parameter's own name."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            found[name.removeprefix("module.")] = whole(parameter.grad).cpu().clone()
    return found


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A split tensor put together."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


def mine(ids: torch.Tensor) -> torch.Tensor:
    """This rank's rows."""
    return ids.chunk(dist.get_world_size())[dist.get_rank()]


def data_parallel(folder: str, profile: str) -> dict[str, Any]:
    model = load_as(folder, profile).model
    hashed = adapters_hash(model)
    wrapped = torch.nn.parallel.DistributedDataParallel(stirred(model))
    loss = step(wrapped, mine(tokens(model.config.vocab_size)).to(DEVICE))
    return result(wrapped, loss, hashed, average=True)


def fully_sharded(folder: str, profile: str) -> dict[str, Any]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = load_as(folder, profile, engine="fsdp2").model
    hashed = adapters_hash(model)
    stirred(model)
    mesh = init_device_mesh(DEVICE, (dist.get_world_size(),))
    for module in model.modules():
        if type(module).__name__.endswith("DecoderLayer"):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    if DEVICE == "cuda":
        model.to(DEVICE)  # FSDP takes no device map
    loss = step(model, mine(tokens(model.config.vocab_size)).to(DEVICE))
    return result(model, loss, hashed, average=True)


def tensor_parallel(folder: str, profile: str) -> dict[str, Any]:
    """transformers' own, by its plan of the architecture; every rank sees the whole batch."""
    loaded = load_as(folder, profile, tp_plan="auto")
    model, found = loaded.model, [finding.code for finding in loaded.report.findings]
    hashed = adapters_hash(model)
    loss = step(stirred(model, "lora_"), tokens(model.config.vocab_size).to(DEVICE))
    return result(model, loss, hashed, average=False) | {"findings": found}


def zero3(folder: str, profile: str) -> dict[str, Any]:
    """DeepSpeed's third stage: its config is alive before the model is made."""
    import deepspeed
    from deepspeed.utils import safe_get_full_grad
    from transformers.integrations import HfDeepSpeedConfig

    config = {
        "train_micro_batch_size_per_gpu": BATCH // dist.get_world_size(),
        "zero_optimization": {"stage": 3},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # a compiled kernel; nothing is optimized here
    }
    deepspeed.init_distributed(BACKEND)
    alive = HfDeepSpeedConfig(config)
    with environment(ZERO3):
        model = load_as(folder, profile).model
    del alive
    split = [p for p in model.parameters() if hasattr(p, "ds_shape")]
    with deepspeed.zero.GatheredParameters(split, modifier_rank=0):
        hashed = adapters_hash(model)
        stirred(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    engine, *_ = deepspeed.initialize(model=model, config=config, optimizer=torch.optim.SGD(trained, lr=0.0))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    ids = mine(tokens(model.config.vocab_size)).to(DEVICE)
    loss = engine(input_ids=ids, labels=ids).loss
    engine.backward(loss)
    found = result(model, loss.detach(), hashed, average=True)
    grads = {name: safe_get_full_grad(p) for name, p in model.named_parameters() if p.requires_grad}
    return found | {"gradients": {n: g.float() for n, g in grads.items()}, "split": len(split)}


def result(model: Any, loss: torch.Tensor, hashed: str, *, average: bool) -> dict[str, Any]:
    """What is compared: the mean loss, whole gradients, everybody's adapters, how many parameters are split,
    and whether stacks of experts are."""
    grads = gradients(model)
    parts = [name for name, p in model.named_parameters() if isinstance(p, DTensor)]
    if average:
        dist.all_reduce(loss)
        loss = loss / dist.get_world_size()
    hashes: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(hashes, hashed)
    experts = any(name.endswith(("experts.down_proj", "base_layer.down_proj")) for name in parts)
    return {
        "loss": loss.cpu(),
        "gradients": grads,
        "adapters": hashes,
        "split": len(parts),
        "experts": experts,
    }


ENGINES: dict[str, Callable[..., dict[str, Any]]] = {
    "ddp": data_parallel,
    "fsdp2": fully_sharded,
    "tp": tensor_parallel,
    "zero3": zero3,
}


def accelerated(out: str, folder: str) -> None:
    """DDP as accelerate sets it up: `Accelerator.prepare` takes the loaded model as it is."""
    import accelerate

    accelerator = accelerate.Accelerator(cpu=os.environ.get("ACCELERATE_USE_CPU") == "true")
    hashed = adapters_hash(model := load_as(folder, "lora").model)
    wrapped = accelerator.prepare(stirred(model))
    ids = mine(tokens(model.config.vocab_size)).to(accelerator.device)
    found = result(wrapped, step(wrapped, ids), hashed, average=True)
    if accelerator.process_index == 0:
        torch.save(found | {"wrapped": type(wrapped).__name__}, Path(out) / "accelerate lora.pt")
    accelerator.end_training()


def engines(out: str, folder: str, *cases: str) -> None:
    """Run "engine profile" for each case, and save what rank 0 has."""
    if DEVICE == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group(BACKEND)
    for case in cases:
        engine, profile = case.split()
        try:
            found: dict[str, Any] = ENGINES[engine](folder, profile)
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {error}"}
        if dist.get_rank() == 0:
            torch.save(found, Path(out) / f"{case}.pt")
        dist.barrier()
    dist.destroy_process_group()


@contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    """What accelerate's launcher sets, for a while."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
