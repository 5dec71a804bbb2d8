"""4-bit and 8-bit quantization with bitsandbytes."""
