"""Checkpoints that plugins bring from elsewhere: what they say is checked, and their files copied."""
