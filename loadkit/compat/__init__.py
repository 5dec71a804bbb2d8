"""Drop-ins for the loading code of the alignment-handbook, open-r1 and TRL: the same names and arguments, through plan and audit.

    from loadkit.compat import get_model, get_peft_config, get_tokenizer

    model = get_model(model_args, training_args)
    tokenizer = get_tokenizer(model_args, training_args)
    trainer = SFTTrainer(model=model, processing_class=tokenizer, peft_config=get_peft_config(model_args), args=training_args, …)

They return what the originals return: the bare model, into which the trainer injects the adapter. `loadkit.load(recipe=…)` returns
a model that is ready to train, with its adapter.
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
