"""loadkit-smollm3: SmolLM3 as a plugin of loadkit. `plugin` is what loadkit sees; the classes import torch, and load only when used."""
