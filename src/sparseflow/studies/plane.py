"""Training loss over the plane through three checkpoints."""

from __future__ import annotations

import itertools
import math

import numpy as np

from sparseflow.measure.landscape import loss_and_accuracy
from sparseflow.measure.plane import plane
from sparseflow.plotting.drawing import Axes, Drawing, mpl, style
from sparseflow.plotting.figure import Figure
from sparseflow.plotting.formats import listing, short
from sparseflow.plotting.marks import mark
from sparseflow.plotting.palette import CARD, INK, SCALE, color_of
from sparseflow.plotting.table import Table
from sparseflow.plotting.vocabulary import parse_label
from sparseflow.runs import Store
from sparseflow.studies.evidence import Evidence, first
from sparseflow.studies.load import examples, load_all
from sparseflow.studies.study import Point, Record, Study, Tagged, register_study
from sparseflow.studies.values import Matrix, Row, matrix, row


class Plane(Record, Tagged, frozen=True, tag="plane"):
    """Training loss over the plane through three checkpoints.

    Attributes:
        labels: of the three.
        positions: their coordinates (x, y), in units of L2 distance.
        x: coordinates of the columns.
        y: coordinates of the rows.
        losses: rows by y, columns by x.
    """

    labels: tuple[str, str, str]
    positions: Matrix
    x: Row
    y: Row
    losses: Matrix

    def tables(self) -> list[Table]:
        """The loss at every point of the grid."""
        rows = [
            {"y \\ x": y} | {f"{x:.3g}": loss for x, loss in zip(self.x, line, strict=True)}
            for y, line in zip(self.y, self.losses, strict=True)
        ]
        corners = zip(self.labels, self.positions, strict=True)
        where = ", ".join(f"{name} ({x:.3g}, {y:.3g})" for name, (x, y) in corners)
        return [Table.of(f"training loss on the plane through {where}", rows)]


class PlaneStudy(Study, Tagged, frozen=True, tag="plane"):
    """Training loss over the plane through three checkpoints.

    Attributes:
        corners: the three.
        points: of the grid, along each axis.
        examples: of the training set, from its start.
    """

    corners: tuple[Point, Point, Point]
    points: int = 21
    examples: int = 5000

    @property
    def checkpoints(self) -> tuple[Point, ...]:
        """The corners."""
        return self.corners

    def measure(self, store: Store) -> Plane:
        """Evaluate every network of the grid."""
        corners, data = load_all(self, store)
        a, b, c = (network.state for network in corners)
        batch, grid = examples(data, self.examples), (self.points, self.points)
        surface = plane(corners[0].model, a, b, c, loss_and_accuracy, batch, points=grid)
        return Plane(
            labels=(corners[0].label, corners[1].label, corners[2].label),
            positions=matrix(surface.positions),
            x=row(surface.x),
            y=row(surface.y),
            losses=matrix(surface.losses),
        )


def over_plane(results: Evidence) -> str:
    """Highest loss on the straight ways between the three corners."""
    plane = first(results, Plane)
    if plane is None:
        return ""
    names = [parse_label(label).recipe.replace("prune", "pruned") for label in plane.labels]
    said = [
        f"{short(_highest(plane, i, j))} between {names[i]} and {names[j]}"
        for i, j in itertools.combinations(range(3), 2)
    ]
    corners = [f"{short(_highest(plane, i, i))} at {name}" for i, name in enumerate(names)]
    ways = f"on the straight ways it rises to {listing(said)} (read off the grid)"
    return f"Training loss is {listing(corners)}; {ways}."


def _highest(plane: Plane, i: int, j: int) -> float:
    """Highest loss on the segment between two corners, bilinear on the grid."""
    x, y = (np.array(axis, dtype=float) for axis in (plane.x, plane.y))
    z = np.log(np.array(plane.losses, dtype=float))
    a, b = np.array(plane.positions, dtype=float)[[i, j]]
    best = -math.inf
    for point in np.linspace(a, b, 101 if i != j else 1):
        rows = [np.interp(point[0], x, row) for row in z]
        best = max(best, float(np.interp(point[1], y, rows)))
    return math.exp(best)


def _draw(results: Evidence) -> Drawing | None:
    """Draw the loss over the plane, in steps of its logarithm."""
    plane = first(results, Plane)
    if plane is None:
        return None
    losses = np.array(plane.losses, dtype=float)
    levels = _levels(losses)
    with style.styled():
        x, y = (np.array(axis, dtype=float) for axis in (plane.x, plane.y))
        tall = 4.0 * min(max(np.ptp(y) / max(np.ptp(x), 1e-9), 0.5), 1.3)
        figure = mpl.figure.Figure(figsize=(style.WIDTH, tall + 1.15))
        axes = figure.subplots()
        shown = np.ma.masked_invalid(losses).clip(levels[0], levels[-1])
        axes.contourf(x, y, shown, levels=levels, colors=SCALE, zorder=0)
        axes.contour(x, y, shown, levels=levels[1:-1], colors=CARD, linewidths=0.5, zorder=1)
        axes.grid(visible=False)
        axes.set_aspect("equal")
        axes.set_xlabel("L2 distance in the plane")
        _corners(axes, plane)
        bar = style.scale_bar(figure, axes, levels, [short(float(v)) for v in levels], aspect=40)
        bar.set_label("training loss (logarithmic)", loc="left")
        return figure


def _levels(losses: np.ndarray) -> np.ndarray:
    """As many steps as the scale has, even in the logarithm between least and greatest loss."""
    finite = losses[np.isfinite(losses) & (losses > 0)]
    low, high = float(finite.min()), float(finite.max())
    return np.geomspace(low, max(high, low * 1.01), len(SCALE) + 1)


def _corners(axes: Axes, plane: Plane) -> None:
    positions = np.array(plane.positions, dtype=float)
    middle = positions.mean(axis=0)
    for label, point in zip(plane.labels, positions, strict=True):
        recipe = parse_label(label).recipe
        dot = axes.scatter(
            *point, s=60, color=color_of(recipe), edgecolors=CARD, linewidths=1.2, zorder=4
        )
        mark(dot, recipe, label)
        right, up = point[0] < middle[0], point[1] >= middle[1]
        name = axes.annotate(
            recipe.replace("prune", "pruned"), point, xytext=(0, 9 if up else -9),
            textcoords="offset points", ha="left" if right else "right",
            va="bottom" if up else "top", fontsize=9, color=INK, zorder=5,
            bbox={"boxstyle": "round,pad=0.25", "facecolor": CARD, "edgecolor": "none"},
        )  # fmt: skip
        mark(name, recipe)


def _data(results: Evidence) -> Table:
    plane = first(results, Plane)
    grid = itertools.product(plane.y, plane.x) if plane else ()
    losses = itertools.chain.from_iterable(plane.losses) if plane else ()
    rows = [{"x": x, "y": y, "loss": loss} for (y, x), loss in zip(grid, losses, strict=True)]
    return Table.of("training loss over the plane", rows)


SURFACE = Figure(
    "plane",
    "The loss over the plane through three solutions",
    "Every point is a network: a mixture of the pruned one, a ticket and one trained from "
    "scratch on the ticket's mask. Shades run from low to high training loss as on the "
    "bar, each a step of the same factor.",
    "the plane through three solutions",
    _draw,
    _data,
    over_plane,
    evidence=True,
)

register_study(
    PlaneStudy,
    Plane,
    probe="plane",
    takes=(3, 3),
    options=("examples",),
    order=5,
    figures=(SURFACE,),
)
