"""Supervised fine-tuning of a QLoRA adapter on chats: `python sft.py MODEL OUT [STEPS]` (needs trl)."""

import sys

import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

import loadkit
from loadkit.compat import from_training_arguments

source, out, steps = sys.argv[1], sys.argv[2], int((sys.argv[3:] or ["100"])[0])
gpu = torch.cuda.is_available()
args = SFTConfig(
    output_dir=out,
    max_steps=steps,
    max_length=256,
    learning_rate=2e-4,
    report_to="none",
    bf16=gpu,
    use_cpu=not gpu,
)
data = Dataset.from_list([
    {"messages": [{"role": "user", "content": f"What is {n} plus one?"}, {"role": "assistant", "content": f"{n + 1}."}]}
    for n in range(64)
])  # fmt: skip

loaded = loadkit.load(source, "qlora", **from_training_arguments(args))
print(loaded)
SFTTrainer(loaded.model, processing_class=loaded.processing_class, args=args, train_dataset=data).train()
loaded.save_pretrained(out)
loaded.manifest().save(f"{out}/loadkit-manifest.json")
