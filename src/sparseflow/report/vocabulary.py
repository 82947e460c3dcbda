"""What the names of recipes say: method and initialisation, their order and groups."""

from __future__ import annotations

from dataclasses import dataclass

MASKED_DENSE, LIU, FAN_IN = "masked-dense", "liu", "fan-in"
INITS = {
    MASKED_DENSE: "masked dense",
    LIU: "layer-scaled (Liu et al.)",
    FAN_IN: "per-neuron fan-in (paper's, +)",
}
"""Initialisations and what to call them."""

PANELS = {
    "Dense, pruned, ticket": ("dense", "small-dense", "prune", "prune-restart", "lottery"),
    "Static masks": ("scratch", "shuffled"),
    "SET": ("set",),
    "RigL": ("rigl", "rigl-inverted"),
}
"""Groups of methods that share a panel, in the order of the table."""

OTHER = "Other"
METHODS = tuple(method for group in PANELS.values() for method in group)
OWN_INIT = ("lottery", "prune-restart")
"""Methods that start from the weights of another run."""


@dataclass(frozen=True)
class Kind:
    """Method and initialisation of a recipe."""

    method: str
    init: str

    @property
    def panel(self) -> str:
        """Group that the method is drawn with."""
        return next((name for name, group in PANELS.items() if self.method in group), OTHER)

    @property
    def order(self) -> tuple[int, str, int]:
        """Place in the table."""
        known = METHODS.index(self.method) if self.method in METHODS else len(METHODS)
        return known, self.method, tuple(INITS).index(self.init)


def kind_of(recipe: str) -> Kind:
    """Split a recipe's short name.

    >>> kind_of("rigl-inverted+")
    Kind(method='rigl-inverted', init='fan-in')
    >>> kind_of("set-liu")
    Kind(method='set', init='liu')
    """
    if recipe.endswith("+"):
        return Kind(recipe[:-1], FAN_IN)
    if recipe.endswith("-liu"):
        return Kind(recipe.removesuffix("-liu"), LIU)
    return Kind(recipe, MASKED_DENSE)
