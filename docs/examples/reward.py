"""A reward model from pairs of answers: `python reward.py MODEL OUT [STEPS]` (needs trl).

One label on a head that starts anew, trained whole and saved with the adapter.
"""

import sys

import torch
from datasets import Dataset
from trl import RewardConfig, RewardTrainer

import loadkit
from loadkit.compat import from_training_arguments

source, out, steps = sys.argv[1], sys.argv[2], int((sys.argv[3:] or ["100"])[0])
gpu = torch.cuda.is_available()
args = RewardConfig(
    output_dir=out,
    max_steps=steps,
    max_length=256,
    learning_rate=1e-4,
    report_to="none",
    bf16=gpu,
    use_cpu=not gpu,
)
data = Dataset.from_list([
    {"chosen": f"{n} plus one is {n + 1}.", "rejected": f"{n} plus one is a number."} for n in range(64)
])  # fmt: skip

loaded = loadkit.load(
    source, "lora", task="sequence-classification", num_labels=1, **from_training_arguments(args)
)
print(loaded.report)
RewardTrainer(loaded.model, processing_class=loaded.processing_class, args=args, train_dataset=data).train()
loaded.save_pretrained(out)
