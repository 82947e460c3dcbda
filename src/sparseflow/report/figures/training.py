"""Test accuracy during training, a panel for each group of methods."""

from __future__ import annotations

import numpy as np

from sparseflow.plotting.drawing import Axes, Drawing, style
from sparseflow.plotting.figure import Figure
from sparseflow.plotting.marks import mark
from sparseflow.plotting.table import Table
from sparseflow.report.figures.panels import draw_panels
from sparseflow.report.results import Results, RunValues
from sparseflow.report.summary import by_recipe


def _draw(results: Results) -> Drawing | None:
    groups = by_recipe([run for run in results.main if len(run.evals.step) > 1])

    def draw(axes: Axes, recipes: list[str]) -> None:
        for recipe in recipes:
            _draw_recipe(axes, groups[recipe], recipe)
        style.even_steps(axes, max(run.evals.step[-1] for runs in groups.values() for run in runs))

    return draw_panels(groups, draw, "test accuracy in %")


def _draw_recipe(axes: Axes, runs: list[RunValues], recipe: str) -> None:
    """A thin line a seed, and the median of the living where there are several."""
    looks = style.stroke(recipe)
    for run in runs:
        values = np.array(run.evals.accuracy, dtype=float)
        (line,) = axes.plot(
            run.evals.step, values, color=looks.color, alpha=0.45, linewidth=0.6, zorder=2
        )
        mark(line, recipe, f"{recipe}, seed {run.seed}" + ", dead" * run.dead)
    living = [run for run in runs if not run.dead] or runs
    steps = sorted(set.intersection(*(set(run.evals.step) for run in living)))
    table = [dict(zip(run.evals.step, run.evals.accuracy, strict=True)) for run in living]
    rows = np.array([[row[step] for step in steps] for row in table], dtype=float)
    (line,) = axes.plot(
        steps, np.median(rows, axis=0), color=looks.color, linestyle=looks.dashes, zorder=4
    )
    mark(line, recipe, f"{recipe}, median of {len(living)}")


def _data(results: Results) -> Table:
    points = [
        {"recipe": run.recipe, "seed": run.seed, "step": step, "accuracy": accuracy, "loss": loss}
        for run in results.main
        for step, accuracy, loss in zip(
            run.evals.step, run.evals.accuracy, run.evals.loss, strict=True
        )
    ]
    return Table.of("test accuracy during training", points)


TRAINING = Figure(
    "training",
    "Test accuracy during training",
    "Thick line: median of the living seeds (of all, if none lives; dotted: masked dense, dashed: "
    "Liu et al., solid: per-neuron fan-in, or the method's own start). Thin lines: the seeds.",
    "training runs whose accuracy was evaluated on the way",
    _draw,
    _data,
    lambda results: "",
)
