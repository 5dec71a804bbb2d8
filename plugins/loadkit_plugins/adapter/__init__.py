"""New and existing PEFT adapters."""
