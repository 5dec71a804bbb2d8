"""A checkpoint that is stored quantized: what it is in memory, by its method and this machine."""
