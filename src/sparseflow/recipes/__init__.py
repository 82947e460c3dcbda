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
from sparseflow.recipes.paper import Reproduction, reproduction

__all__ = [
    "FAMILIES",
    "Reproduction",
    "demo_specs",
    "expand",
    "find_family",
    "group_names",
    "make_spec",
    "makers",
    "recipe_names",
    "reproduction",
]
