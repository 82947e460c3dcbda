"""Recipes: names for run specifications, and the Python functions that return them."""

from sparseflow.recipes.make import (
    FAMILIES,
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
    "demo_specs",
    "expand",
    "find_family",
    "group_names",
    "make_spec",
    "makers",
    "recipe_names",
]
