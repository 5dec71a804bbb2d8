"""From a plan to a model: the one room that imports torch and transformers to load."""
