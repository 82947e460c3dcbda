"""Histograms of eigenvalues: bins that are even in the arsinh, around zero as fine as far out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import StepPatch
from matplotlib.ticker import NullFormatter

from sparseflow.plotting.formats import minus
from sparseflow.plotting.marks import mark
from sparseflow.plotting.palette import GRID, INK, MUTED, color_of
from sparseflow.plotting.style import fixed_ticks

LEAST = 0.3
"""Expected number of eigenvalues in a bin under which it is drawn as empty."""

Histogram = tuple[Sequence[float | None], Sequence[float | None]]
"""Edges of the bins, and the (expected) number of eigenvalues in each."""


def fill(axes: Axes, histogram: Histogram) -> StepPatch:
    """Draw a histogram as a grey surface."""
    edges, counts = _drawn(histogram)
    return axes.stairs(counts, edges, fill=True, color=MUTED, alpha=0.45, linewidth=0, zorder=1)


def outline(axes: Axes, histogram: Histogram, **look: object) -> StepPatch:
    """Draw a histogram as a line."""
    edges, counts = _drawn(histogram)
    return axes.stairs(counts, edges, **look)  # type: ignore[arg-type]


def scale(panels: Sequence[Axes], histograms: Sequence[Histogram]) -> None:
    """Scale axes as the bins are, so that each is as wide as the next; shade the negative side."""
    edges = np.array(histograms[0][0], dtype=float)
    linear = linear_width(edges)
    low, high = _reach(histograms)
    powers = [10.0**p for p in range(-6, 7, 2) if 10.0**p > 2 * linear]
    ticks = [0.0, *powers, *(-p for p in powers)]
    for axes in panels:
        axes.set_yscale("log")
        axes.set_ylim(bottom=LEAST)
        fixed_ticks(axes.yaxis, [1, 10, 100, 1000, 10_000], lambda v: f"{v:,.0f}")
        axes.set_xscale("asinh", linear_width=linear)
        axes.set_xlim(low, high)
        axes.axvspan(low, 0, color=GRID, alpha=0.45, linewidth=0, zorder=0)
        axes.axvline(0, color=INK, linewidth=0.8, zorder=3)
        shown = [tick for tick in ticks if low <= tick <= high]
        fixed_ticks(axes.xaxis, shown, lambda v: minus(f"{v:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(visible=False, axis="x")


def draw_extremes(
    axes: Axes,
    values: Mapping[str, Sequence[float | None]],
    others: Mapping[str, float],
    sign: int,
) -> None:
    """Draw eigenvalues of one sign on a logarithmic scale: recipes down, a dot for each value.

    Args:
        axes: to draw on.
        values: by recipe.
        others: by recipe, what others measured; drawn as triangles.
        sign: 1 or -1; values of the other are left out.
    """
    every: list[float] = []
    for place, (recipe, column) in enumerate(values.items()):
        sizes = [sign * value for value in column if value and sign * value > 0]
        every += sizes
        dots = axes.scatter(
            sizes, [place - 0.1] * len(sizes), s=24, color=color_of(recipe), alpha=0.8,
            linewidths=0, zorder=3,
        )  # fmt: skip
        mark(dots, recipe, recipe)
        if recipe in others:
            every.append(sign * others[recipe])
            theirs = axes.scatter(
                every[-1:], [place + 0.2], s=18, marker="^", color=INK, linewidths=0
            )
            mark(theirs, recipe)
    axes.set_xscale("log")
    if every:
        axes.set_xlim(min(every) / 2, max(every) * 2)
    before = "" if sign > 0 else "−"
    fixed_ticks(axes.xaxis, [10.0**p for p in range(-6, 6)], lambda v: f"{before}{v:g}")
    if sign < 0:
        axes.invert_xaxis()
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set_yticks(range(len(values)), list(values))
    axes.set_ylim(len(values) - 0.5, -0.5)


def linear_width(edges: np.ndarray) -> float:
    """Recover s from edges s · sinh(u), even in u: far out each is exp(Δu) times the last."""
    last = np.sort(np.abs(edges))[-1]
    before = edges[-2] if edges[-1] == last else -edges[1]
    step = np.log(last / before) if before > 0 else 1.0
    widths = np.diff(edges)
    return float(widths.min() / (2 * np.sinh(step / 2)))


def _drawn(histogram: Histogram) -> tuple[np.ndarray, np.ndarray]:
    edges, counts = (np.array(column, dtype=float) for column in histogram)
    return edges, np.where(np.nan_to_num(counts) < LEAST, LEAST, counts)


def _reach(histograms: Sequence[Histogram]) -> tuple[float, float]:
    """Ends of the bins that hold anything, with the zero inside."""
    low, high = 0.0, 0.0
    for histogram in histograms:
        edges, counts = (np.array(column, dtype=float) for column in histogram)
        filled = np.flatnonzero(counts >= LEAST)
        if len(filled):
            low = min(low, float(edges[max(filled[0] - 1, 0)]))
            high = max(high, float(edges[min(filled[-1] + 2, len(edges) - 1)]))
    return low, high
