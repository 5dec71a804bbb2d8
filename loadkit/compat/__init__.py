"""Drop-ins for the alignment-handbook's, open-r1's and TRL's loading code: same names and arguments, audited.

    from loadkit.compat import get_model, get_peft_config, get_tokenizer

    model = get_model(model_args, training_args)
    tokenizer = get_tokenizer(model_args, training_args)
    peft_config = get_peft_config(model_args)
    trainer = SFTTrainer(model, training_args, processing_class=tokenizer, peft_config=peft_config, …)

They return what the originals return: the bare model, into which the trainer injects the adapter; and raise
what `loadkit.load` raises. `loadkit.load(recipe=…)` returns a model ready to train, with its adapter.
"""

from loadkit.compat.arguments import from_model_config, from_training_arguments
from loadkit.compat.trl import (
    get_kbit_device_map,
    get_model,
    get_peft_config,
    get_quantization_config,
    get_tokenizer,
)

__all__ = [
    "from_model_config",
    "from_training_arguments",
    "get_kbit_device_map",
    "get_model",
    "get_peft_config",
    "get_quantization_config",
    "get_tokenizer",
]
