"""Checkpoints from elsewhere for loadkit, through fsspec."""
