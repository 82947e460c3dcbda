"""Colours: literal in the files of the figures, and for light and dark on the page."""

from __future__ import annotations

from sparseflow.plotting.vocabulary import FAN_IN, LIU, MASKED_DENSE, kind_of

INK, MUTED, GRID, CARD = "#1c1b19", "#77746c", "#e3e1da", "#fffefc"
OTHER = "#2f6f73"

METHODS = {
    "dense": "#4c4a46",
    "small-dense": "#a09c92",
    "prune": "#0072b2",
    "prune-restart": "#56b4e9",
    "lottery": "#c4579a",
    "scratch": "#e69f00",
    "shuffled": "#8c510a",
    "static": "#8c510a",
    "set": "#009e73",
    "rigl": "#d55e00",
    "rigl-inverted": "#7b4fb5",
}
SCALE = (
    "#f1f5f2", "#dbe9e5", "#bedbd6", "#98c8c5", "#6caeb0", "#3a838b", "#256f7a", "#0f4e5c",
)  # fmt: skip
"""Low to high, in steps: of heat maps and contours."""

ON_SCALE = 5
"""Step of the scale from which text on it is as light as the card."""

INITS = {MASKED_DENSE: "#6f6c65", LIU: "#0091d5", FAN_IN: "#d45f01"}

_DARK_SCALE = (
    "#262d2d", "#263839", "#28494b", "#2b5d60", "#2c6d71", "#46979a", "#77bcbc", "#b5e0dd",
)  # fmt: skip
_DARK = {
    INK: "#ece9e2",
    MUTED: "#98948b",
    GRID: "#3a3833",
    CARD: "#211f1c",
    OTHER: "#6fb9bd",
    METHODS["dense"]: "#d6d2c8",
    METHODS["small-dense"]: "#8f8b82",
    METHODS["prune"]: "#4aa3e0",
    METHODS["prune-restart"]: "#9ad4f7",
    METHODS["lottery"]: "#ea8cc4",
    METHODS["scratch"]: "#f2b632",
    METHODS["shuffled"]: "#c98f52",
    METHODS["set"]: "#35c99b",
    METHODS["rigl"]: "#ff8848",
    METHODS["rigl-inverted"]: "#b394ea",
    INITS[MASKED_DENSE]: "#aaa69c",
    INITS[LIU]: "#45b5f0",
    INITS[FAN_IN]: "#ff8a45",
    **dict(zip(SCALE, _DARK_SCALE, strict=True)),
}

VARIABLES = {light: f"--c{number}" for number, light in enumerate(_DARK)}
"""Name of the page's variable for each colour."""


def declarations(*, dark: bool) -> str:
    """CSS declarations of all variables."""
    pairs = ((VARIABLES[light], shade if dark else light) for light, shade in _DARK.items())
    return " ".join(f"{name}: {value};" for name, value in pairs)


def color_of(recipe: str) -> str:
    """Colour of a recipe, which is that of its method."""
    return METHODS.get(kind_of(recipe).method, OTHER)
