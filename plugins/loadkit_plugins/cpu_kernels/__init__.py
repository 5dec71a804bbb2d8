"""Compiled CPU kernels for bitsandbytes' own operators. Everything here is imported while loading, never while planning."""
