"""A QLoRA adapter on the language model of a vision-language model, over pictures:
`python vision_language.py MODEL OUT [STEPS]` (needs trl).

The processor comes with the model; the vision tower stays as it is, unless you ask with `lora_vision=True`.
"""

import sys

import torch
from datasets import Dataset
from PIL import Image
from trl import SFTConfig, SFTTrainer

import loadkit
from loadkit.compat import from_training_arguments

source, out, steps = sys.argv[1], sys.argv[2], int((sys.argv[3:] or ["100"])[0])
gpu = torch.cuda.is_available()
args = SFTConfig(
    output_dir=out,
    max_steps=steps,
    max_length=None,  # never cut an image's tokens off
    per_device_train_batch_size=2,
    learning_rate=2e-4,
    report_to="none",
    bf16=gpu,
    use_cpu=not gpu,
)
colours = {"red": (200, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 200)}
data = Dataset.from_list([
    {
        "images": [Image.new("RGB", (64, 64), colours[name])],
        "messages": [{"role": "user", "content": "What colour is it?"}, {"role": "assistant", "content": name}],
    }
    for name in [*colours] * 8
])  # fmt: skip

loaded = loadkit.load(source, "qlora", **from_training_arguments(args))
print(loaded.plan.why("processing"))
SFTTrainer(loaded.model, processing_class=loaded.processing_class, args=args, train_dataset=data).train()
loaded.save_pretrained(out)
