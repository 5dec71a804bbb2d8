"""How quantities and suggestions read in messages, and what becomes of output that can't be written."""
