"""Recipes: names for run specifications, and the Python functions that return them."""

from sparseflow.recipes import cifar, imagenet, mnist  # noqa: F401  (they register families)
from sparseflow.recipes.family import FAMILIES, Family, Inits, register_family
from sparseflow.recipes.make import (
    demo_specs,
    expand,
    find_family,
    group_names,
    make_spec,
    makers,
    recipe_names,
)

__all__ = [
    "FAMILIES",
    "Family",
    "Inits",
    "demo_specs",
    "expand",
    "find_family",
    "group_names",
    "make_spec",
    "makers",
    "recipe_names",
    "register_family",
]
