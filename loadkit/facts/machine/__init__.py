"""Accelerators, memory and packages; processes and the engine that spreads a model over them."""
