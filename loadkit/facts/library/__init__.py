"""What the installed transformers offers, read from its source without importing it."""
