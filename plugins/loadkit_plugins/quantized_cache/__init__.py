"""Quantized bases that are kept for the next load."""
