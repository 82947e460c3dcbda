"""Largest and smallest Hessian eigenvalue at initialisation."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from sparseflow.report.figures.style import WIDTH, look, styled
from sparseflow.report.palette import INK, MUTED
from sparseflow.report.results import Results, Spectrum
from sparseflow.report.seen import at_init, others_curvature

_TICKS = tuple(10.0**p for p in range(-6, 6))


def curvature_start_figure(results: Results) -> Figure | None:
    """Draw each seed as a dot, and the authors' code's figures as triangles.

    Returns:
        None if no spectrum was measured at initialisation.
    """
    groups = at_init(results)
    if not groups:
        return None
    others = others_curvature(results)
    with styled():
        figure = Figure(figsize=(WIDTH, 1.2 + 0.3 * len(groups)))
        largest, smallest = figure.subplots(1, 2, sharey=True)
        _panel(largest, "Largest", groups, {r: v[0] for r, v in others.items()}, 1)
        _panel(smallest, "Smallest", groups, {r: v[1] for r, v in others.items()}, -1)
        largest.set_yticks(range(len(groups)), list(groups))
        largest.set_ylim(len(groups) - 0.5, -0.5)
        handles = [
            Line2D([], [], linestyle="", marker=m, color=c, markersize=5)
            for m, c in (("o", MUTED), ("^", INK))
        ]
        names = ["a seed", "authors' code"]
        shown = 2 if any(recipe in others for recipe in groups) else 1
        figure.legend(handles[:shown], names[:shown], loc="outside upper left", ncols=2)
        return figure


def _panel(
    axes: Axes, title: str, groups: dict[str, list[Spectrum]], others: dict[str, float], sign: int
) -> None:
    every: list[float] = []
    for place, (recipe, found) in enumerate(groups.items()):
        values = [sign * float((s.largest if sign > 0 else s.smallest) or 0) for s in found]
        values = [value for value in values if value > 0]
        every += values
        axes.scatter(
            values, [place - 0.1] * len(values), s=24, color=look(recipe).color, alpha=0.8,
            linewidths=0, zorder=3,
        )  # fmt: skip
        if recipe in others:
            every.append(sign * others[recipe])
            axes.scatter(every[-1:], [place + 0.2], s=18, marker="^", color=INK, linewidths=0)
    axes.set_title(f"{title} eigenvalue")
    axes.set_xscale("log")
    if every:
        axes.set_xlim(min(every) / 2, max(every) * 2)
    axes.xaxis.set_major_locator(FixedLocator(_TICKS))
    axes.xaxis.set_minor_locator(NullLocator())
    if sign < 0:
        axes.invert_xaxis()
    before = "" if sign > 0 else "−"
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{before}{v:g}"))
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
