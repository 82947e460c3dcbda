"""What the names of recipes say: method and initialisation, their order and groups."""

from __future__ import annotations

from dataclasses import dataclass

from sparseflow.topology import METHODS

MASKED_DENSE, LIU, FAN_IN = "masked-dense", "liu", "fan-in"
INITS = {
    MASKED_DENSE: "masked dense",
    LIU: "layer-scaled (Liu et al.)",
    FAN_IN: "per-neuron fan-in (paper's, +)",
}
"""Initialisations and what to call them."""

OTHER = "Other"


@dataclass(frozen=True)
class Look:
    """How a recipe is shown.

    Attributes:
        label: what to call it.
        panel: group that it is drawn with.
        light: its colour in light pictures, and its name among the page's colours.
        dark: its colour on a dark page.
    """

    label: str
    panel: str
    light: str
    dark: str


_START, _STATIC = "Dense, pruned, ticket", "Static masks"
_LOOKS = {
    "dense": Look("dense", _START, "#4c4a46", "#d6d2c8"),
    "small-dense": Look("small dense", _START, "#a09c92", "#8f8b82"),
    "prune": Look("pruned", _START, "#0072b2", "#4aa3e0"),
    "prune-restart": Look("prune restart", _START, "#56b4e9", "#9ad4f7"),
    "lottery": Look("lottery", _START, "#c4579a", "#ea8cc4"),
    "scratch": Look("scratch", _STATIC, "#e69f00", "#f2b632"),
    "shuffled": Look("shuffled", _STATIC, "#8c510a", "#c98f52"),
    "static": Look("static", _STATIC, "#8c510a", "#c98f52"),
}
"""Of the recipes that do not bear a method's name."""

_FREE = (
    ("#00798c", "#4fc3d6"), ("#a23b72", "#e27bb1"), ("#5c7c1a", "#a5cc55"), ("#b8860b", "#e6bf4f"),
    ("#3f5fbf", "#8fa8f5"), ("#8b4a9c", "#c98fda"), ("#b5473c", "#f08b80"), ("#4a7c59", "#8ecba1"),
)  # fmt: skip
"""Colours of methods that name none, in the order in which they are registered."""

_UNKNOWN = ("#2f6f73", "#6fb9bd")
"""Colours of a recipe of a method that is not registered here."""


def looks() -> dict[str, Look]:
    """How each recipe without its mark is shown, in the order of the table."""
    free, methods = iter(_FREE * len(METHODS)), {}
    for entry in METHODS.entries():
        if entry.facts["recipes"]:
            colors = entry.facts["color"] or next(free)
            methods[entry.name] = Look(entry.facts["label"], entry.facts["group"], *colors)
    return _LOOKS | methods


def look_of(recipe: str) -> Look:
    """How a recipe is shown, also one of a method that is not registered here.

    >>> look_of("rigl-liu").label, look_of("from-elsewhere+").panel
    ('RigL', 'Other')
    """
    method = kind_of(recipe).method
    return looks().get(method) or Look(method, OTHER, *_UNKNOWN)


def panels() -> list[str]:
    """Groups of recipes that share a panel, in the order of the table."""
    return list(dict.fromkeys([*(look.panel for look in looks().values()), OTHER]))


OWN_INIT = ("lottery", "prune-restart")
"""Recipes that start from the weights of another run."""

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
    def order(self) -> tuple[int, str, int, str]:
        """Place in the table."""
        known = list(looks())
        place = known.index(self.method) if self.method in known else len(known)
        inits = list(INITS)
        return place, self.method, inits.index(self.init), self.group


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
