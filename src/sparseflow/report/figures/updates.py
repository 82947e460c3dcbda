"""Change of the gradient norm at mask updates."""

from __future__ import annotations

import numpy as np

from sparseflow.plotting.drawing import Axes, Drawing, style
from sparseflow.plotting.figure import Figure
from sparseflow.plotting.marks import mark, mark_all
from sparseflow.plotting.palette import MUTED
from sparseflow.plotting.table import Table
from sparseflow.report import findings
from sparseflow.report.figures.panels import draw_panels
from sparseflow.report.results import Results, RunValues
from sparseflow.report.summary import by_recipe, changes

BINS = 12
_TICKS = (-1.0, -0.1, -0.01, 0.0, 0.01, 0.1, 1.0, 10.0, 100.0)


def _draw(results: Results) -> Drawing | None:
    """Draw after / before - 1 against the step.

    The line is the median over twelve stretches of the training and all
    seeds, the band the middle half of the updates, thin lines the seeds.
    """
    groups = by_recipe([run for run in results.main if run.updates is not None])

    def draw(axes: Axes, recipes: list[str]) -> None:
        _scale(axes)
        axes.axhline(0, color=MUTED, linewidth=0.8, zorder=1)
        for recipe in recipes:
            _draw_recipe(axes, groups[recipe], recipe, results.steps)
        style.even_steps(axes, results.steps)

    return draw_panels(groups, draw, "change of the gradient norm")


def _draw_recipe(axes: Axes, runs: list[RunValues], recipe: str, last: int) -> None:
    looks = style.stroke(recipe)
    if len(runs) > 1:
        for run in runs:
            centres, (middle,) = _levels([run], last, (50,))
            lines = axes.plot(
                centres, middle, color=looks.color, linewidth=0.6, alpha=0.45, zorder=2
            )
            mark_all(lines, recipe, f"{recipe}, seed {run.seed}")
    centres, (low, middle, high) = _levels(runs, last, (25, 50, 75))
    band = axes.fill_between(
        centres, low, high, color=looks.color, alpha=0.18, linewidth=0, zorder=2
    )
    mark(band, recipe)
    lines = axes.plot(centres, middle, color=looks.color, linestyle=looks.dashes, zorder=4)
    mark_all(lines, recipe, f"{recipe}, median")


def _levels(
    runs: list[RunValues], last: int, levels: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Percentiles of the changes in each stretch of the training, and its middle."""
    steps, values = np.array(changes(runs), dtype=float).reshape(-1, 2).T
    edges = np.linspace(0, last, BINS + 1)
    place = np.digitize(steps, edges[1:-1])
    filled = np.unique(place)
    middles = (edges[filled] + edges[filled + 1]) / 2
    columns = [np.percentile(values[place == number], levels) for number in filled]
    return middles, np.array(columns).reshape(-1, len(levels)).T


def _scale(axes: Axes) -> None:
    axes.set_yscale("symlog", linthresh=0.01, linscale=0.6)
    style.fixed_ticks(axes.yaxis, _TICKS, _percent)


def _percent(value: float) -> str:
    return f"{100 * value:+.0f} %".replace("-", "−") if value else "0"


def _data(results: Results) -> Table:
    points = [
        {"recipe": run.recipe, "seed": run.seed, "step": step, "change": value}
        for run in results.main
        for step, value in changes([run])
    ]
    return Table.of("change of the gradient norm at mask updates", points)


UPDATES = Figure(
    "updates",
    "What a mask update does to the gradient norm",
    "Norm just after an update over the norm just before, minus one; beyond 1 % the scale is "
    "logarithmic. Line and band: median and "
    "middle half of the updates in twelve stretches of training; thin lines: the seeds.",
    "runs whose masks change, such as set+, rigl+ or prune, with measure.updates above 0",
    _draw,
    _data,
    lambda results: findings.update_changes(findings.compared(results)),
)
