"""The recipe: everything that decides a run, typed and validated, YAML in and out.

recipe = load_recipe("minilm-l6", overrides=["train.epochs=3"], competition="aes2")
recipe.to_yaml()
"""

from fb3.recipe.load import load_competition, load_recipe
from fb3.recipe.recipe import Recipe, json_schema
from fb3.recipe.sources import builtin_names, builtin_text

__all__ = ["Recipe", "builtin_names", "builtin_text", "json_schema", "load_competition", "load_recipe"]
