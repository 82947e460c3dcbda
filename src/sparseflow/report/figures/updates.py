"""Change of the gradient norm at mask updates."""

from __future__ import annotations

import numpy as np

from sparseflow.plotting.drawing import Axes, Drawing, mpl, style
from sparseflow.plotting.figure import Figure
from sparseflow.plotting.marks import mark, mark_all
from sparseflow.plotting.palette import MUTED
from sparseflow.plotting.table import Table
from sparseflow.plotting.vocabulary import look_of
from sparseflow.plotting.vocabulary import panels as all_panels
from sparseflow.report import findings
from sparseflow.report.results import Results, RunFigures
from sparseflow.report.summary import by_recipe, changes, legend_name

BINS = 12
_TICKS = (-1.0, -0.1, -0.01, 0.0, 0.01, 0.1, 1.0, 10.0, 100.0)


def _draw(results: Results) -> Drawing | None:
    """Draw after / before - 1 against the step.

    The line is the median over twelve stretches of the training and all
    seeds, the band the middle half of the updates, thin lines the seeds.
    """
    groups = by_recipe([run for run in results.main if run.updates is not None])
    panels = {name: [r for r in groups if look_of(r).panel == name] for name in all_panels()}
    panels = {name: recipes for name, recipes in panels.items() if recipes}
    if not panels:
        return None
    with style.styled():
        figure = mpl.figure.Figure(figsize=(style.WIDTH, 0.55 + 1.5 * len(panels)))
        shared = figure.subplots(len(panels), sharex=True, sharey=True, squeeze=False)[:, 0]
        for axes, (name, recipes) in zip(shared, panels.items(), strict=True):
            axes.set_title(name)
            _scale(axes)
            axes.axhline(0, color=MUTED, linewidth=0.8, zorder=1)
            for recipe in recipes:
                _draw_recipe(axes, groups[recipe], recipe, results.steps)
            looks = [style.stroke(recipe) for recipe in recipes]
            lines = [mpl.lines.Line2D([], [], color=k.color, linestyle=k.dashes) for k in looks]
            names = [legend_name(r, groups[r]) for r in recipes]
            style.side_legend(axes, lines, names, recipes)
        shared[-1].set_xlim(0, results.steps)
        shared[-1].xaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda v, _: f"{v:,.0f}"))
        shared[-1].set_xlabel("training step")
        figure.supylabel("change of the gradient norm", fontsize=9.5)
        return figure


def _draw_recipe(axes: Axes, runs: list[RunFigures], recipe: str, last: int) -> None:
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
    runs: list[RunFigures], last: int, levels: tuple[int, ...]
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
