"""Gradient norm during training, both axes logarithmic, a panel for each group of methods."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

import numpy as np

from sparseflow.plotting.drawing import Axes, Drawing, style
from sparseflow.plotting.figure import Figure
from sparseflow.plotting.marks import mark, mark_all
from sparseflow.plotting.palette import GRID
from sparseflow.plotting.table import Table
from sparseflow.report import findings
from sparseflow.report.figures.panels import draw_panels
from sparseflow.report.results import Results, RunValues
from sparseflow.report.summary import by_recipe

Part = Literal["total", "kernels"]

EACH = 12
"""Seeds of a recipe up to which each has its thin line; of more the range says enough."""

_NAMES = {"total": "gradient norm", "kernels": "gradient norm, kernels"}


def _draw(results: Results, part: Part) -> Drawing | None:
    """Draw the norm over all active parameters, or over kernels alone.

    The line is the median over the living seeds (all, if none lives), the band
    their range, thin lines the seeds where they are few; × ends a dead one. Grey lines are the
    medians of the other panels.
    """
    groups = by_recipe([run for run in results.main if len(run.flow.step) > 1])

    def draw(axes: Axes, recipes: list[str]) -> None:
        steps = next(iter(groups.values()))[0].flow.step
        style.log_values(axes)
        style.log_steps(axes, steps[1], steps[-1])
        for recipe, runs in groups.items():
            if recipe in recipes:
                _draw_recipe(axes, runs, part, recipe)
                continue
            places, table = _stacked(_shown(runs), part)
            median = np.nanmedian(table, axis=0)
            mark_all(axes.plot(places, median, color=GRID, linewidth=1.1, zorder=1), recipe, recipe)

    return draw_panels(groups, draw, _NAMES[part])


def _draw_recipe(axes: Axes, runs: list[RunValues], part: Part, recipe: str) -> None:
    looks = style.stroke(recipe)
    curves = [_positive(run, part) for run in runs]
    each = list(zip(runs, curves, strict=True))
    for run, (steps, values) in each if len(runs) <= EACH else ():
        lines = axes.plot(steps, values, color=looks.color, linewidth=0.6, alpha=0.45, zorder=2)
        mark_all(lines, recipe, f"{recipe}, seed {run.seed}" + ", dead" * run.dead)
    for run, (x, y) in each:
        if run.dead and len(y):
            crosses = axes.plot(
                x[-1:], y[-1:], "x", color=looks.color, markersize=5, zorder=5, clip_on=False
            )
            mark_all(crosses, recipe, f"{recipe}, seed {run.seed}, dead")
    steps, table = _stacked(_shown(runs), part)
    if len(table) > 1:
        low, high = np.nanmin(table, axis=0), np.nanmax(table, axis=0)
        band = axes.fill_between(
            steps, low, high, color=looks.color, alpha=0.15, linewidth=0, zorder=2
        )
        mark(band, recipe)
    median = np.nanmedian(table, axis=0)
    lines = axes.plot(steps, median, color=looks.color, linestyle=looks.dashes, zorder=4)
    mark_all(lines, recipe, f"{recipe}, median of {len(table)}")


def _positive(run: RunValues, part: Part) -> tuple[np.ndarray, np.ndarray]:
    """Leave out norms of exactly zero, for which a logarithmic axis has no place."""
    steps, values = (np.array(c, dtype=float) for c in (run.flow.step, getattr(run.flow, part)))
    return steps[values > 0], values[values > 0]


def _shown(runs: list[RunValues]) -> list[RunValues]:
    return [run for run in runs if not run.dead] or runs


def _stacked(runs: Sequence[RunValues], field: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps that all runs have in common, and one row of the flow curve a run."""
    common = sorted(set.intersection(*(set(run.flow.step) for run in runs)))
    table = []
    for run in runs:
        values = dict(zip(run.flow.step, getattr(run.flow, field), strict=True))
        table.append([values[step] for step in common])
    return np.array(common, dtype=float), np.array(table, dtype=float)


def _data(results: Results, part: Part) -> Table:
    points = [
        {"recipe": run.recipe, "seed": run.seed, "step": step, "norm": norm}
        for run in results.main
        for step, norm in zip(run.flow.step, getattr(run.flow, part), strict=True)
    ]
    return Table.of(_NAMES[part], points)


FLOW = Figure(
    "flow",
    "Gradient norm during training",
    "L2 norm over all active parameters on a fixed probe batch. Thick line: median of the "
    "living seeds (dotted: masked dense, dashed: Liu et al., solid: per-neuron fan-in, or the "
    "method's own start). Band: their range. × ends a dead run. Grey: the other panels. "
    "Gradual pruning is the dense network until it begins to prune.",
    "the training recipes",
    partial(_draw, part="total"),
    partial(_data, part="total"),
    lambda results: findings.ticket_norm(findings.compared(results)),
)

FLOW_KERNELS = Figure(
    "flow-kernels",
    "The same over kernels alone",
    "Norm over weights alone: in a badly initialised sparse network the biases can make up "
    "nearly all of the total. Drawn as above.",
    "the training recipes",
    partial(_draw, part="kernels"),
    partial(_data, part="kernels"),
    lambda results: findings.kernels_at_start(findings.compared(results)),
)
