"""Training recipes of TRL, the alignment-handbook, open-r1, axolotl and LLaMA-Factory, as loadkit's options.

`yaml_files` turns a file into a mapping, `translate` turns that into options by a table. The tables are data,
one a dialect: `trl.toml`, `axolotl.toml`, `llama_factory.toml`. To read another key, add it there.
"""

from loadkit.request.recipes.by_model import options_for
from loadkit.request.recipes.recipe import Recipe, read_recipe

__all__ = ["Recipe", "options_for", "read_recipe"]
