"""Gradient norm during training, both axes logarithmic, a panel for each group of methods."""

from __future__ import annotations

from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sparseflow.report.figures.style import (
    WIDTH,
    by_recipe,
    legend_name,
    log_steps,
    log_values,
    look,
    side_legend,
    stacked,
    styled,
)
from sparseflow.report.palette import GRID
from sparseflow.report.results import Results, RunFigures
from sparseflow.report.vocabulary import OTHER, PANELS, kind_of

Part = Literal["total", "kernels"]

EACH = 12
"""Seeds of a recipe up to which each has its thin line; of more the range says enough."""

_NAMES = {"total": "gradient norm", "kernels": "gradient norm, kernels"}


def flow_figure(results: Results, part: Part = "total") -> Figure | None:
    """Draw the norm over all active parameters, or over kernels alone.

    The line is the median over the living seeds (all, if none lives), the band
    their range, thin lines the seeds where they are few; × ends a dead one. Grey lines are the
    medians of the other panels.

    Returns:
        None if no run was trained.
    """
    groups = by_recipe([run for run in results.main if len(run.flow.step) > 1])
    names = [n for n in (*PANELS, OTHER) if any(kind_of(r).panel == n for r in groups)]
    if not names:
        return None
    steps = next(iter(groups.values()))[0].flow.step
    with styled():
        height = 0.55 + sum(_height(groups, name) for name in names)
        figure = Figure(figsize=(WIDTH, height))
        panels = figure.subplots(
            len(names),
            sharex=True,
            sharey=True,
            squeeze=False,
            height_ratios=[_height(groups, name) for name in names],
        )[:, 0]
        for axes, name in zip(panels, names, strict=True):
            axes.set_title(name)
            log_values(axes)
            log_steps(axes, steps[1], steps[-1])
            _draw_panel(axes, groups, name, part)
        figure.supylabel(_NAMES[part], fontsize=9.5)
        panels[-1].set_xlabel("training step")
        return figure


def _height(groups: dict[str, list[RunFigures]], panel: str) -> float:
    return max(1.55, 0.62 + 0.2 * sum(kind_of(r).panel == panel for r in groups))


def _draw_panel(axes: Axes, groups: dict[str, list[RunFigures]], name: str, part: Part) -> None:
    handles, labels = [], []
    for recipe, runs in groups.items():
        if kind_of(recipe).panel != name:
            steps, table = stacked(_shown(runs), part)
            axes.plot(steps, np.nanmedian(table, axis=0), color=GRID, linewidth=1.1, zorder=1)
            continue
        style = look(recipe)
        _draw_recipe(axes, runs, part, recipe)
        handles.append(Line2D([], [], color=style.color, linestyle=style.dashes))
        labels.append(legend_name(recipe, runs))
    side_legend(axes, handles, labels)


def _draw_recipe(axes: Axes, runs: list[RunFigures], part: Part, recipe: str) -> None:
    style = look(recipe)
    curves = [_positive(run, part) for run in runs]
    for steps, values in curves if len(runs) <= EACH else ():
        axes.plot(steps, values, color=style.color, linewidth=0.6, alpha=0.45, zorder=2)
    ends = [(x[-1], y[-1]) for run, (x, y) in zip(runs, curves, strict=True) if run.dead and len(y)]
    if ends:
        axes.plot(
            *zip(*ends, strict=True), "x", color=style.color, markersize=5, zorder=5, clip_on=False
        )
    steps, table = stacked(_shown(runs), part)
    if len(table) > 1:
        low, high = np.nanmin(table, axis=0), np.nanmax(table, axis=0)
        axes.fill_between(steps, low, high, color=style.color, alpha=0.15, linewidth=0, zorder=2)
    median = np.nanmedian(table, axis=0)
    axes.plot(steps, median, color=style.color, linestyle=style.dashes, zorder=4)


def _positive(run: RunFigures, part: Part) -> tuple[np.ndarray, np.ndarray]:
    """Leave out norms of exactly zero, for which a logarithmic axis has no place."""
    steps, values = (np.array(c, dtype=float) for c in (run.flow.step, getattr(run.flow, part)))
    return steps[values > 0], values[values > 0]


def _shown(runs: list[RunFigures]) -> list[RunFigures]:
    return [run for run in runs if not run.dead] or runs
