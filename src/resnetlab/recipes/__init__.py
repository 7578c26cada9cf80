"""Recipes: every hyperparameter of a training run. A named recipe states only what differs from its base."""

from resnetlab.recipes.describe import FieldInfo, describe_fields
from resnetlab.recipes.files import parse_settings, recipe, stated_keys
from resnetlab.recipes.named import BASE, RECIPES
from resnetlab.recipes.schema import INPUT_KEYS, SYNONYMS, Recipe, RecipeFields, require_known_keys

__all__ = [
    "BASE",
    "INPUT_KEYS",
    "RECIPES",
    "SYNONYMS",
    "FieldInfo",
    "Recipe",
    "RecipeFields",
    "describe_fields",
    "parse_settings",
    "recipe",
    "require_known_keys",
    "stated_keys",
]
