"""Colours: literal in the files of the figures, and for light and dark on the page."""

from __future__ import annotations

from sparseflow.plotting.vocabulary import init_marks, look_of, looks, mark_of

INK, MUTED, GRID, CARD = "#1c1b19", "#77746c", "#e3e1da", "#fffefc"
SCALE = (
    "#f1f5f2", "#dbe9e5", "#bedbd6", "#98c8c5", "#6caeb0", "#3a838b", "#256f7a", "#0f4e5c",
)  # fmt: skip
"""Low to high, in steps: of heat maps and contours."""

ON_SCALE = 5
"""Step of the scale from which text on it is as light as the card."""

_DARK_SCALE = (
    "#262d2d", "#263839", "#28494b", "#2b5d60", "#2c6d71", "#46979a", "#77bcbc", "#b5e0dd",
)  # fmt: skip
_DARK = {
    INK: "#ece9e2",
    MUTED: "#98948b",
    GRID: "#3a3833",
    CARD: "#211f1c",
    **dict(zip(SCALE, _DARK_SCALE, strict=True)),
}


def _shades() -> dict[str, str]:
    """Each colour of the light pictures, and the one that takes its place on a dark page."""
    inits = dict(mark.color for mark in (*init_marks().values(), mark_of("")))
    return _DARK | inits | {look.light: look.dark for look in (*looks().values(), look_of(""))}


def variables() -> dict[str, str]:
    """Name of the page's variable for each colour."""
    return {light: f"--c{number}" for number, light in enumerate(_shades())}


def declarations(*, dark: bool) -> str:
    """CSS declarations of all variables."""
    names = variables()
    pairs = ((names[light], shade if dark else light) for light, shade in _shades().items())
    return " ".join(f"{name}: {value};" for name, value in pairs)


def color_of(recipe: str) -> str:
    """Colour of a recipe, which is that of its method."""
    return look_of(recipe).light
