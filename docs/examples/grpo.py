"""Group relative policy optimisation with a reward of one's own: `python grpo.py MODEL OUT [STEPS]`
(needs trl)."""

import sys

import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

import loadkit
from loadkit.compat import from_training_arguments

source, out, steps = sys.argv[1], sys.argv[2], int((sys.argv[3:] or ["100"])[0])
gpu = torch.cuda.is_available()
args = GRPOConfig(
    output_dir=out, max_steps=steps, num_generations=2, per_device_train_batch_size=2, max_completion_length=16,
    report_to="none", bf16=gpu, use_cpu=not gpu,
)  # fmt: skip
data = Dataset.from_list([{"prompt": f"{n} plus one is"} for n in range(64)])


def brief(completions: list[str], **_: object) -> list[float]:
    """A reward for few different letters."""
    return [-float(len(set(completion))) for completion in completions]


loaded = loadkit.load(source, "lora", **from_training_arguments(args))
GRPOTrainer(
    loaded.model, reward_funcs=brief, processing_class=loaded.processing_class, args=args, train_dataset=data
).train()
loaded.save_pretrained(out)
