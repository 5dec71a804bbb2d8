"""How plugins are asked: the hooks, the manager, and what an answer may be."""
