"""Density and churn, layer by layer: a panel for each layer."""

from __future__ import annotations

import numpy as np

from sparseflow.plotting.drawing import Axes, Drawing, mpl, style
from sparseflow.plotting.figure import Figure
from sparseflow.plotting.formats import percent
from sparseflow.plotting.marks import mark, mark_all
from sparseflow.plotting.table import Table
from sparseflow.report.results import Results, RunValues
from sparseflow.report.summary import by_recipe

MOST = 12
"""Layers that are drawn at most; all are among the values."""


def _groups(results: Results) -> dict[str, list[RunValues]]:
    return by_recipe([run for run in results.main if run.layers])


def _draw(results: Results) -> Drawing | None:
    """Draw the density of each layer against the step at the left, the churn at the right."""
    groups = _groups(results)
    if not groups:
        return None
    drawn = [runs[0].layers for runs in groups.values()]
    names = list(dict.fromkeys(n for layers in drawn if layers for n in layers.names))[:MOST]
    last = max(run.steps for runs in groups.values() for run in runs)
    with style.styled():
        figure = mpl.figure.Figure(
            figsize=(style.WIDTH, 0.5 + 1.25 * len(names) + 0.19 * -(-len(groups) // 3))
        )
        grid = figure.subplots(len(names), 2, sharex=True, sharey="col", squeeze=False)
        for (left, right), name in zip(grid, names, strict=True):
            left.set_title(name)
            for recipe, runs in groups.items():
                _draw_recipe(left, right, recipe, runs, name)
        style.log_values(grid[0, 0])
        grid[0, 1].set_title("churn")
        for axes in grid[-1]:
            axes.set_xlim(-0.02 * last, 1.02 * last)
            axes.set_xticks([0, last], ["0", f"{last:,}"])
            axes.set_xlabel("training step")
        figure.supylabel("density (left), share of connections replaced (right)", fontsize=9.5)
        looks = [style.stroke(recipe) for recipe in groups]
        lines = [
            mpl.lines.Line2D([], [], color=k.color, linestyle=k.dashes, marker=".") for k in looks
        ]
        legend = figure.legend(lines, list(groups), loc="outside upper left", ncols=3)
        for recipe, *entry in zip(groups, legend.legend_handles, legend.get_texts(), strict=True):
            mark_all(entry, recipe)
        return figure


def _draw_recipe(left: Axes, right: Axes, recipe: str, runs: list[RunValues], name: str) -> None:
    """Means over the seeds, at the checkpoints that all of them have."""
    looks = style.stroke(recipe)
    for axes, part in ((left, "density"), (right, "churn")):
        curves = [_curve(run, name, part) for run in runs]
        steps = sorted(set.intersection(*(set(curve) for curve in curves)))
        if not steps:
            continue
        means = np.array([[curve[step] for step in steps] for curve in curves]).mean(axis=0)
        (line,) = axes.plot(
            steps, means, color=looks.color, linestyle=looks.dashes, linewidth=1.4,
            marker=looks.marker, markersize=2.5,
        )  # fmt: skip
        mark(line, recipe, f"{recipe}, {part} of {name}, mean of {len(runs)}")


def _curve(run: RunValues, name: str, part: str) -> dict[int, float]:
    """Values of one layer by step; churn stands at the later of two checkpoints."""
    layers = run.layers
    if layers is None or name not in layers.names:
        return {}
    values = getattr(layers, part)[layers.names.index(name)] if getattr(layers, part) else ()
    steps = layers.steps[len(layers.steps) - len(values) :]
    return {step: value for step, value in zip(steps, values, strict=True) if value is not None}


def _data(results: Results) -> Table:
    points = []
    for runs in _groups(results).values():
        for run in runs:
            for name in run.layers.names if run.layers else ():
                churn = _curve(run, name, "churn")
                points += [
                    {"recipe": run.recipe, "seed": run.seed, "layer": name, "step": step}
                    | {"density": density, "churn": churn.get(step)}
                    for step, density in _curve(run, name, "density").items()
                ]
    return Table.of("density and churn by layer", points)


def _finding(results: Results) -> str:
    """Which layer ends densest, and which least dense, by recipe: where it is not the same."""
    said: dict[str, list[str]] = {}
    for recipe, runs in _groups(results).items():
        ends = {}
        for name in runs[0].layers.names if runs[0].layers else ():
            curve = _curve(runs[0], name, "density")
            ends[name] = curve[max(curve)]
        most, least = max(ends, key=ends.__getitem__), min(ends, key=ends.__getitem__)
        if ends[most] > ends[least]:
            text = " to ".join(f"{_short(n)} ({_percent(ends[n])})" for n in (most, least))
            said.setdefault(text, []).append(recipe)
    parts = [f"{', '.join(recipes)} from {text}" for text, recipes in said.items()]
    return f"Densities of the layers at the end, first seed: {'; '.join(parts)}." if parts else ""


def _short(name: str) -> str:
    return name.removesuffix(".weight")


def _percent(density: float) -> str:
    return percent(float(f"{density:.2g}"))


LAYERS = Figure(
    "layers",
    "Density and churn, layer by layer",
    "From the masks of kept checkpoints, means over the seeds. Left: share of the layer's weights "
    "that are active. Right: share of the connections of one checkpoint that the next one lacks. "
    f"A static mask is one mark. Of more than {MOST} layers the first are drawn; the values have "
    "all.",
    "sparse runs of which checkpoints are kept where the report is collected",
    _draw,
    _data,
    _finding,
)
