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
    "Static masks": ("scratch", "shuffled", "static"),
    "SET": ("set",),
    "RigL": ("rigl", "rigl-inverted"),
}
"""Groups of methods that share a panel, in the order of the table."""

OTHER = "Other"
METHODS = tuple(method for group in PANELS.values() for method in group)
OWN_INIT = ("lottery", "prune-restart")
"""Methods that start from the weights of another run."""

RULES = {"rigl": "RigL", "set": "SET", "rigl-inverted": "RigL inverted", "random": "Random"}
"""Rules that a mask update is tried by, in the order of the figures."""

GROUPS = {
    "lottery:orders": "lottery",
    "scratch:orders": "scratch",
    "scratch:inits": "scratch, inits",
    "prune-restart:orders": "prune restart",
    "prune": "different pruned",
    "rigl+": "RigL+",
    "set+": "SET+",
}
"""Groups whose predictions are compared, and what to call them."""


@dataclass(frozen=True)
class Kind:
    """Method and initialisation of a recipe.

    Attributes:
        method: how its mask comes about.
        init: how its weights do.
        group: what its members differ in, if all come from one pruned network.
    """

    method: str
    init: str
    group: str = ""

    @property
    def panel(self) -> str:
        """Group that the method is drawn with."""
        return next((name for name, group in PANELS.items() if self.method in group), OTHER)

    @property
    def order(self) -> tuple[int, str, int, str]:
        """Place in the table."""
        known = METHODS.index(self.method) if self.method in METHODS else len(METHODS)
        return known, self.method, tuple(INITS).index(self.init), self.group


def kind_of(recipe: str) -> Kind:
    """Split a recipe's short name.

    >>> kind_of("rigl-inverted+")
    Kind(method='rigl-inverted', init='fan-in', group='')
    >>> kind_of("set-liu").init, kind_of("scratch:orders").group
    ('liu', 'orders')
    """
    name, _, group = recipe.partition(":")
    if name.endswith("+"):
        return Kind(name[:-1], FAN_IN, group)
    if name.endswith("-liu"):
        return Kind(name.removesuffix("-liu"), LIU, group)
    return Kind(name, MASKED_DENSE, group)


@dataclass(frozen=True)
class Place:
    """What the label of a checkpoint says.

    Attributes:
        recipe: short name.
        seed: of the run.
        when: ``start``, ``end`` or a step.
    """

    recipe: str
    seed: str
    when: str


def place_of(label: str) -> Place:
    """Split the label of a checkpoint; one that is no label is all recipe.

    >>> place_of("scratch:inits 3 end")
    Place(recipe='scratch:inits', seed='3', when='end')
    """
    parts = label.rsplit(" ", 2)
    return Place(*parts) if len(parts) == 3 else Place(label, "", "")
