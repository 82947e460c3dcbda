"""Disagreement between all pairs of networks, as a heat map."""

from __future__ import annotations

import itertools
import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PatchCollection
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from sparseflow.report.figures.style import WIDTH, styled
from sparseflow.report.palette import CARD, INK, ON_SCALE, SCALE
from sparseflow.report.results import Results
from sparseflow.report.seen import blocks, mean_between
from sparseflow.report.vocabulary import GROUPS

LEFT = 1.45
"""Inches for the names of the groups."""


def disagreement_figure(results: Results) -> Figure | None:
    """Draw the matrix of the living runs, with the mean of each block in %.

    Returns:
        None if no predictions were compared, or fewer than two runs live.
    """
    found = results.agreement
    if found is None:
        return None
    groups = [(name, alive) for name, alive, _ in blocks(found) if alive]
    order = [i for _, alive in groups for i in alive]
    if len(order) < 2:
        return None
    table = 100 * np.array(found.disagreement, dtype=float)[np.ix_(order, order)]
    step = _step(float(np.nanmax(table)) / len(SCALE))
    levels = np.clip(np.floor(table / step), 0, len(SCALE) - 1)
    with styled():
        figure = Figure(figsize=(WIDTH, WIDTH - LEFT + 1.45))
        axes = figure.subplots()
        _cells(axes, levels)
        ends = [0, *itertools.accumulate(len(alive) for _, alive in groups)]
        for end in ends[1:-1]:
            for line in (axes.axhline, axes.axvline):
                line(end, color=CARD, linewidth=2.5, zorder=2)
        spans = list(zip(ends[:-1], ends[1:], groups, strict=True))
        for (a, b, (_, rows)), (c, d, (_, columns)) in itertools.product(spans, spans):
            mean = mean_between(found, rows, columns)
            if mean is not None:
                high = 100 * mean / step >= ON_SCALE
                axes.text(
                    (c + d) / 2, (a + b) / 2, f"{100 * mean:.1f}", ha="center", va="center",
                    fontsize=9, color=CARD if high else INK, zorder=3,
                )  # fmt: skip
        middles = [(a + b) / 2 for a, b, _ in spans]
        names = [GROUPS.get(name, name) for name, _ in groups]
        _frame(axes, len(order), middles, names)
        _bar(figure, axes, step)
        return figure


def _step(least: float) -> float:
    """Smallest of 1, 2, 2.5, 5 times a power of ten that is no less."""
    if not least > 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * f for f in (1, 2, 2.5, 5, 10) if power * f >= least * (1 - 1e-9))


def _cells(axes: Axes, levels: np.ndarray) -> None:
    """Draw neighbours of one colour in a row as one rectangle: a tenth of the file."""
    for level, color in enumerate(SCALE):
        bars = []
        for y, row in enumerate(levels):
            x = 0
            for same, run in itertools.groupby(row == level):
                width = len(list(run))
                if same:
                    bars.append(Rectangle((x, y), width, 1))
                x += width
        bars = PatchCollection(bars, facecolors=color, edgecolors=color, linewidths=0.8, zorder=1)
        axes.add_collection(bars)


def _frame(axes: Axes, size: int, middles: list[float], names: list[str]) -> None:
    axes.set_xlim(0, size)
    axes.set_ylim(size, 0)
    axes.set_aspect("equal")
    axes.grid(visible=False)
    axes.set_yticks(middles, names)
    axes.set_xticks(middles, names, rotation=38, ha="right", rotation_mode="anchor")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _bar(figure: Figure, axes: Axes, step: float) -> None:
    bounds = step * np.arange(len(SCALE) + 1)
    mappable = ScalarMappable(BoundaryNorm(list(bounds), len(SCALE)), ListedColormap(SCALE))
    bar = figure.colorbar(mappable, ax=axes, location="top", aspect=36, pad=0.02)
    bar.set_ticks(list(bounds), labels=[f"{bound:.3g}" for bound in bounds])
    bar.set_label("disagreement, % of test images")
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.ax.tick_params(length=0)
