"""What the names of recipes say: method and initialisation, their order and groups."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sparseflow.init import MASKED_DENSE, InitMark, marks
from sparseflow.topology import METHODS

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
    method = parse_recipe(recipe).method
    return looks().get(method) or Look(method, OTHER, *_UNKNOWN)


def panels() -> list[str]:
    """Groups of recipes that share a panel, in the order of the table."""
    return list(dict.fromkeys([*(look.panel for look in looks().values()), OTHER]))


OWN_INIT = ("lottery", "prune-restart")
"""Recipes that start from the weights of another run."""

RULES = {"rigl": "RigL", "set": "SET", "rigl-inverted": "RigL inverted", "random": "Random"}
"""Rules that a mask update is tried by, in the order of the figures."""

_GROUPS = {
    "lottery:orders": "lottery",
    "scratch:orders": "scratch",
    "scratch:inits": "scratch, inits",
    "prune-restart:orders": "prune restart",
    "prune": "different pruned",
    "rigl+": "RigL+",
    "set+": "SET+",
}
"""Groups whose predictions are compared, and what to call them."""


def group_label(name: str) -> str:
    """What to call a group of runs.

    >>> group_label("scratch:inits"), group_label("set-liu")
    ('scratch, inits', 'set-liu')
    """
    return _GROUPS.get(name, name)


def init_marks() -> dict[str, InitMark]:
    """Initialisations by the name that they have in results, in the order of the table."""
    return {mark.name: mark for mark in marks().values()}


def mark_of(init: str) -> InitMark:
    """How an initialisation is shown, also one that is not registered here."""
    return init_marks().get(init) or InitMark(f"-{init}", init, init)


def inits_in_order(names: Iterable[str]) -> list[str]:
    """Sort initialisations as the table does, each once; those not registered here come last."""
    given, registered = set(names), init_marks()
    return [*(n for n in registered if n in given), *sorted(given.difference(registered))]


@dataclass(frozen=True)
class RecipeName:
    """What the short name of a recipe says.

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
        methods = list(looks())
        place = methods.index(self.method) if self.method in methods else len(methods)
        inits = list(init_marks())
        return place, self.method, inits.index(self.init), self.group


def parse_recipe(recipe: str) -> RecipeName:
    """Split a recipe's short name; one without a suffix is masked dense.

    >>> parse_recipe("rigl-inverted+")
    RecipeName(method='rigl-inverted', init='fan-in', group='')
    >>> parse_recipe("set-liu").init, parse_recipe("scratch:orders").group
    ('liu', 'orders')
    """
    name, _, group = recipe.partition(":")
    if name not in _LOOKS and name not in METHODS:
        for mark in sorted(init_marks().values(), key=lambda mark: -len(mark.suffix)):
            if mark.suffix and name.endswith(mark.suffix):
                return RecipeName(name.removesuffix(mark.suffix), mark.name, group)
    return RecipeName(name, MASKED_DENSE, group)


@dataclass(frozen=True)
class CheckpointLabel:
    """What the label of a checkpoint says.

    Attributes:
        recipe: short name.
        seed: of the run.
        when: ``start``, ``end`` or a step.
    """

    recipe: str
    seed: str
    when: str


def parse_label(label: str) -> CheckpointLabel:
    """Split the label of a checkpoint; one of another form is all recipe.

    >>> parse_label("scratch:inits 3 end")
    CheckpointLabel(recipe='scratch:inits', seed='3', when='end')
    """
    parts = label.rsplit(" ", 2)
    return CheckpointLabel(*parts) if len(parts) == 3 else CheckpointLabel(label, "", "")
