"""Data-parallel training of a LoRA adapter, the same script in every process (needs trl):
`torchrun --standalone --nproc-per-node 2 torchrun.py MODEL OUT [STEPS]`.

The ranks load together: one plan, one download a machine, equal adapters, and one verdict.
"""

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
    ddp_find_unused_parameters=False,  # every adapter is used in every step
)
data = Dataset.from_list([{"text": f"{n} plus one is {n + 1}."} for n in range(64)])

loaded = loadkit.load(source, "lora", **from_training_arguments(args), progress=print)
trainer = SFTTrainer(loaded.model, processing_class=loaded.processing_class, args=args, train_dataset=data)
trainer.train()
if trainer.is_world_process_zero():
    print(loaded.report)
    loaded.save_pretrained(out)
    loaded.manifest().save(f"{out}/loadkit-manifest.json")
