"""Curves over training, a panel for each group of methods."""

from __future__ import annotations

from collections.abc import Callable

from sparseflow.plotting.drawing import Axes, Drawing, mpl, style
from sparseflow.plotting.vocabulary import look_of, panels
from sparseflow.report.results import RunValues
from sparseflow.report.summary import legend_name


def draw_panels(
    groups: dict[str, list[RunValues]], draw: Callable[[Axes, list[str]], None], label: str
) -> Drawing | None:
    """Draw recipes in the panels of their methods, with a legend at the right of each.

    Args:
        groups: runs by recipe.
        draw: draws some recipes on the axes of their panel.
        label: of the values.
    """
    shown = {name: [r for r in groups if look_of(r).panel == name] for name in panels()}
    shown = {name: recipes for name, recipes in shown.items() if recipes}
    if not shown:
        return None
    heights = [max(1.55, 0.62 + 0.2 * len(recipes)) for recipes in shown.values()]
    with style.styled():
        figure = mpl.figure.Figure(figsize=(style.WIDTH, 0.55 + sum(heights)))
        shared = figure.subplots(
            len(shown), sharex=True, sharey=True, squeeze=False, height_ratios=heights
        )[:, 0]
        for axes, (name, recipes) in zip(shared, shown.items(), strict=True):
            axes.set_title(name)
            draw(axes, recipes)
            looks = [style.stroke(recipe) for recipe in recipes]
            lines = [mpl.lines.Line2D([], [], color=k.color, linestyle=k.dashes) for k in looks]
            style.side_legend(axes, lines, [legend_name(r, groups[r]) for r in recipes], recipes)
        shared[-1].set_xlabel("training step")
        figure.supylabel(label, fontsize=9.5)
        return figure
