"""Where solutions lie: a map of their distances, and the loss over a plane through three."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sparseflow.report.figures.style import WIDTH, styled
from sparseflow.report.palette import CARD, INK, METHODS, MUTED, OTHER, SCALE
from sparseflow.report.results import Distances, Plane, Results
from sparseflow.report.seen import STARTS, dead_ends
from sparseflow.report.text import short
from sparseflow.report.vocabulary import GROUPS, kind_of, place_of

_SHAPES = {"": "o", "orders": "o", "inits": "s"}


def map_figure(results: Results) -> Figure | None:
    """Draw the map of starts and ends, each run a line from its start to its end.

    Returns:
        None if there is no map.
    """
    found = results.distances
    if found is None or not found.places or found.stress is None:
        return None
    recipes = list(dict.fromkeys(place_of(label).recipe for label in found.labels))
    with styled():
        places = np.array(found.places, dtype=float)
        width, height = np.ptp(places, axis=0)
        tall = 3.6 * min(max(height / max(width, 1e-9), 0.45), 1.4)
        figure = Figure(figsize=(WIDTH, tall + 1.3))
        axes = figure.subplots()
        for recipe in recipes:
            _draw_runs(axes, found, recipe, dead_ends(results))
        axes.set_aspect("equal", adjustable="datalim")
        axes.margins(0.08)
        axes.set_xlabel("L2 distance along the map")
        axes.text(
            0.99, 0.98, f"stress {found.stress:.2f}", transform=axes.transAxes, ha="right",
            va="top", fontsize=9, color=MUTED,
        )  # fmt: skip
        handles = [_mark(MUTED, "o", hollow=True), _mark(MUTED, "o")]
        shapes = {"prune": "*"}
        handles += [_mark(_color(r), shapes.get(r, _shape(r))) for r in recipes]
        names = ["start", "end", *(_name(r) for r in recipes)]
        figure.legend(handles, names, loc="outside upper left", ncols=3, columnspacing=1.2)
        return figure


def _draw_runs(axes: Axes, found: Distances, recipe: str, gone: set[str]) -> None:
    color, shape = _color(recipe), _shape(recipe)
    at = dict(zip(found.labels, np.array(found.places, dtype=float), strict=True))
    style = {"s": 30, "marker": shape, "linewidths": 1.1, "edgecolors": color}
    for label, point in at.items():
        place = place_of(label)
        if place.recipe != recipe:
            continue
        if place.when == "start":
            axes.scatter(*point, facecolors=CARD, zorder=3, **style)
            continue
        own = label.removesuffix("end") + "start"
        start = at.get(own, at.get(STARTS.get(recipe, "")))
        if start is not None:
            axes.annotate(
                "", point, start, zorder=2,
                arrowprops={
                    "arrowstyle": "-|>,head_length=0.35,head_width=0.18", "color": color,
                    "alpha": 0.6, "linewidth": 1, "shrinkA": 3, "shrinkB": 3,
                },
            )  # fmt: skip
        if label in gone:
            axes.scatter(*point, color=color, marker="x", s=34, linewidths=1.3, zorder=4)
            continue
        if recipe == "prune":
            style |= {"marker": "*", "s": 150, "edgecolors": CARD}
        axes.scatter(*point, facecolors=color, zorder=5 if recipe == "prune" else 4, **style)


def plane_figure(results: Results) -> Figure | None:
    """Draw the loss over the plane, in steps of its logarithm.

    Returns:
        None if no plane was measured.
    """
    found = results.plane
    if found is None:
        return None
    losses = np.array(found.losses, dtype=float)
    levels = _levels(losses)
    with styled():
        x, y = (np.array(axis, dtype=float) for axis in (found.x, found.y))
        tall = 4.0 * min(max(np.ptp(y) / max(np.ptp(x), 1e-9), 0.5), 1.3)
        figure = Figure(figsize=(WIDTH, tall + 1.15))
        axes = figure.subplots()
        shown = np.ma.masked_invalid(losses).clip(levels[0], levels[-1])
        axes.contourf(x, y, shown, levels=levels, colors=SCALE, zorder=0)
        axes.contour(x, y, shown, levels=levels[1:-1], colors=CARD, linewidths=0.5, zorder=1)
        axes.grid(visible=False)
        axes.set_aspect("equal")
        axes.set_xlabel("L2 distance in the plane")
        _corners(axes, found)
        mappable = ScalarMappable(BoundaryNorm(levels, len(SCALE)), ListedColormap(SCALE))
        bar = figure.colorbar(mappable, ax=axes, location="top", aspect=40, pad=0.02)
        bar.set_ticks(list(levels), labels=[short(float(v)) for v in levels])
        bar.set_label("training loss (logarithmic)", loc="left")
        bar.outline.set_visible(False)  # type: ignore[operator]
        bar.ax.tick_params(length=0)
        return figure


def _levels(losses: np.ndarray) -> np.ndarray:
    """As many steps as the scale has, even in the logarithm between least and greatest loss."""
    known = losses[np.isfinite(losses) & (losses > 0)]
    low, high = float(known.min()), float(known.max())
    return np.geomspace(low, max(high, low * 1.01), len(SCALE) + 1)


def _corners(axes: Axes, found: Plane) -> None:
    positions = np.array(found.positions, dtype=float)
    middle = positions.mean(axis=0)
    for label, point in zip(found.labels, positions, strict=True):
        recipe = place_of(label).recipe
        axes.scatter(*point, s=60, color=_color(recipe), edgecolors=CARD, linewidths=1.2, zorder=4)
        right, up = point[0] < middle[0], point[1] >= middle[1]
        axes.annotate(
            recipe.replace("prune", "pruned"), point, xytext=(0, 9 if up else -9),
            textcoords="offset points", ha="left" if right else "right",
            va="bottom" if up else "top", fontsize=9, color=INK, zorder=5,
            bbox={"boxstyle": "round,pad=0.25", "facecolor": CARD, "edgecolor": "none"},
        )  # fmt: skip


def _mark(color: str, shape: str, *, hollow: bool = False) -> Line2D:
    return Line2D(
        [], [], linestyle="", marker=shape, color=color, markersize=10 if shape == "*" else 5.5,
        markeredgewidth=1.1, markerfacecolor=CARD if hollow else color,
    )  # fmt: skip


def _name(recipe: str) -> str:
    return "pruned" if recipe == "prune" else GROUPS.get(recipe, recipe)


def _color(recipe: str) -> str:
    return METHODS.get(kind_of(recipe).method, OTHER)


def _shape(recipe: str) -> str:
    return _SHAPES.get(kind_of(recipe).group, "D")
