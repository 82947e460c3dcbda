"""Recipes: names for run specifications, and the Python functions that return them."""

from sparseflow.recipes import cifar, imagenet, mnist  # noqa: F401  (they register families)
from sparseflow.recipes.choose import Choice, choose, is_id, named
from sparseflow.recipes.departure import Departure, command, departure
from sparseflow.recipes.extend import extend
from sparseflow.recipes.family import FAMILIES, Family, Inits, register_family
from sparseflow.recipes.grid import grid, one_each
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
    "Choice",
    "Departure",
    "Family",
    "Inits",
    "choose",
    "command",
    "demo_specs",
    "departure",
    "expand",
    "extend",
    "find_family",
    "grid",
    "group_names",
    "is_id",
    "make_spec",
    "makers",
    "named",
    "one_each",
    "recipe_names",
    "register_family",
]
