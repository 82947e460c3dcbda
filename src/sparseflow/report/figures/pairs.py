"""Paired differences of several recipes from one, metric by metric."""

from __future__ import annotations

from sparseflow.plotting.drawing import Axes, Drawing, mpl, style
from sparseflow.plotting.palette import INK, MUTED, color_of
from sparseflow.report.compare import Compared


def pairs_figure(compared: Compared) -> Drawing:
    """Draw a panel a metric and a row a recipe: a dot a pair, the mean with its interval."""
    rows = len(compared.versus)
    with style.styled():
        height = len(compared.metrics) * (0.62 + 0.26 * rows)
        figure = mpl.figure.Figure(figsize=(style.WIDTH, height))
        panels = figure.subplots(len(compared.metrics), squeeze=False)[:, 0]
        for number, (axes, words) in enumerate(zip(panels, compared.metrics.values(), strict=True)):
            _panel(axes, compared, number)
            axes.set_title(words)
        panels[-1].set_xlabel(f"difference from {compared.baseline}")
    return figure


def _panel(axes: Axes, compared: Compared, number: int) -> None:
    axes.axvline(0, color=MUTED, linewidth=1, zorder=1)
    for row, versus in enumerate(compared.versus):
        difference = versus.differences[number]
        color = color_of(versus.recipe.partition("/")[2])
        places = [row] * len(difference.values)
        axes.plot([*difference.values.values()], places, "o", ms=4, alpha=0.6, mew=0, color=color)
        if difference.comparison is not None:
            estimate = difference.comparison.difference
            axes.plot([estimate.low, estimate.high], [row + 0.28] * 2, color=color, linewidth=2.2)
            axes.plot(estimate.value, row + 0.28, "D", ms=4.5, color=INK)
    axes.set_ylim(len(compared.versus) - 0.4, -0.5)
    axes.set_yticks(range(len(compared.versus)), [v.recipe for v in compared.versus])
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.08)
    axes.locator_params(axis="x", nbins=5)
