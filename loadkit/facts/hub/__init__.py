"""Repositories on the Hub and their cache, through huggingface_hub."""
