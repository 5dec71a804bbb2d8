"""Direct preference optimisation: `python dpo.py MODEL OUT [STEPS]` (needs trl).

The reference is the base with the adapter off: TRL takes no second model where the policy has an adapter.
"""

import sys

import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

import loadkit
from loadkit.compat import from_training_arguments

source, out, steps = sys.argv[1], sys.argv[2], int((sys.argv[3:] or ["100"])[0])
gpu = torch.cuda.is_available()
args = DPOConfig(
    output_dir=out,
    max_steps=steps,
    max_length=256,
    learning_rate=5e-6,
    report_to="none",
    bf16=gpu,
    use_cpu=not gpu,
)
data = Dataset.from_list([
    {"prompt": f"{n} plus one is", "chosen": f" {n + 1}.", "rejected": " a number."} for n in range(64)
])  # fmt: skip

loaded = loadkit.load(source, "qlora", **from_training_arguments(args))
trainer = DPOTrainer(loaded.model, processing_class=loaded.processing_class, args=args, train_dataset=data)
trainer.train()
loaded.save_pretrained(out)
