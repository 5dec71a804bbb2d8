"""Which class loads the checkpoint."""
