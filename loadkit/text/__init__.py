"""How quantities and suggestions read in messages."""
