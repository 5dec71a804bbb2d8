"""Training recipes of TRL, the alignment-handbook, open-r1, axolotl and LLaMA-Factory: what they say of loading, as loadkit's options.

`reading` turns a YAML file into a mapping and says what is wrong with it; `translating` turns that into options by a table. The tables
are data, one a dialect: `trl.toml`, `axolotl.toml`, `llama_factory.toml`. To read another key, add it there.
"""

from loadkit.request.recipes.recipe import Recipe, read_recipe

__all__ = ["Recipe", "read_recipe"]
