"""Fields of trainers' configs that bear on the model, and that the trainer or the launch carries out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

from loadkit.errors import Problem
from loadkit.schema.request import Request
from loadkit.text.suggest import did_you_mean

__all__ = ["LEFT_TO_THE_TRAINER", "TRAINER_FIELDS", "unknown_trainer_fields"]

_problem = partial(Problem, "request", "loadkit")

TRAINER_FIELDS = "trainer_fields"
"""The option that names such fields, which `loadkit.compat.from_training_arguments` sets."""

_PRECISION = "the trainer's autocast computes so, whatever dtype the weights have; `dtype` decides that"
_LAUNCH = "the launch says what spreads the model, and the plan reads it there (engine)"
_COMPILE = "the trainer compiles the loaded model"
_REFERENCE = (
    "the trainer makes or reads the reference model; loadkit.load_reference makes one that is audited"
)
_LENGTH = "the trainer cuts texts to it, and the model has the positions that its config says"
_HEAD = "the trainer changes the loaded model by it"
_CPU = "the trainer moves batches to the CPU; where there is an accelerator, device_map='cpu' comes with it"

LEFT_TO_THE_TRAINER: Mapping[str, str] = {
    **dict.fromkeys(("bf16", "fp16", "bf16_full_eval", "fp16_full_eval", "tf32", "half_precision_backend"), _PRECISION),
    **dict.fromkeys(("deepspeed", "fsdp", "fsdp_config", "parallelism_config"), _LAUNCH),
    **dict.fromkeys(("torch_compile", "torch_compile_backend", "torch_compile_mode"), _COMPILE),
    **dict.fromkeys(
        ("ref_model_init_kwargs", "precompute_ref_log_probs", "sync_ref_model", "model_adapter_name", "ref_adapter_name", "force_use_ref_model"),
        _REFERENCE,
    ),
    **dict.fromkeys(("max_length", "max_prompt_length", "max_completion_length", "max_seq_length"), _LENGTH),
    "RewardConfig": "its trainer scores texts by a classifier with one label",
    "use_cpu": _CPU,
    "no_cuda": _CPU,
    "use_liger_kernel": "the trainer puts Liger's kernels into the loaded model",
    "liger_kernel_config": "the trainer puts Liger's kernels into the loaded model",
    "neftune_noise_alpha": "the trainer adds noise to the loaded model's embeddings",
    "activation_offloading": "the trainer moves activations to the CPU while it trains",
    "padding_free": "the trainer joins a batch into one text; FlashAttention keeps its parts apart",
    "packing": "the trainer joins several texts into one; FlashAttention keeps its parts apart",
    "disable_dropout": "the trainer turns the loaded model's dropout off, an adapter's too",
    "use_cache": "the trainer sets it in the loaded model's config",
    "router_aux_loss_coef": _HEAD,
    "cast_lm_head_to_fp32": _HEAD,
    "optim_target_modules": "the optimizer projects the gradients of these modules",
    "optim_args": "the optimizer reads them",
    "auto_find_batch_size": "the trainer runs again with less where memory is out",
    "pad_to_multiple_of": "the trainer pads batches to it",
    "full_determinism": "the trainer seeds what it starts itself",
    "resume_from_checkpoint": "the trainer lays its weights over the loaded ones",
    "ignore_bias_buffers": "the trainer leaves these buffers out of DDP's broadcast",
}  # fmt: skip
"""Field, or kind of trainer's config, to who carries it out, and how."""


def unknown_trainer_fields(request: Request) -> Iterator[Problem]:
    """A problem for each name that isn't a field of this kind."""
    asked = request.asked(TRAINER_FIELDS)
    for name in asked.value if asked else ():
        if name not in LEFT_TO_THE_TRAINER:
            yield _problem(
                "unknown-trainer-field",
                f"{asked.by if asked else 'you'} named {name!r} as a trainer's field{did_you_mean(name, LEFT_TO_THE_TRAINER)}, and it is none that "
                "bears on the model and is left to the trainer",
                "leave trainer_fields to loadkit.compat.from_training_arguments",
            )
