"""loadkit-torchao: a second quantizer for loadkit, as a distribution of its own."""
