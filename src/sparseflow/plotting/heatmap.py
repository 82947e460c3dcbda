"""A matrix of shades, in steps of the palette's scale."""

from __future__ import annotations

import itertools
import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.patches import Rectangle

from sparseflow.plotting.marks import mark
from sparseflow.plotting.palette import CARD, SCALE


def round_step(least: float) -> float:
    """Smallest of 1, 2, 2.5, 5 times a power of ten that is not less.

    >>> round_step(2.3), round_step(0.9)
    (2.5, 1.0)
    """
    if not least > 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * f for f in (1, 2, 2.5, 5, 10) if power * f >= least * (1 - 1e-9))


def draw_shades(
    axes: Axes, levels: np.ndarray, corner: tuple[int, int] = (0, 0)
) -> list[PatchCollection]:
    """Draw neighbours of one shade in a row as one rectangle: a tenth of the file.

    Args:
        axes: to draw on.
        levels: number of the shade of each cell.
        corner: x and y of the first cell.

    Returns:
        What was drawn of each shade.
    """
    drawn = []
    for level, color in enumerate(SCALE):
        bars = []
        for y, row in enumerate(levels):
            x = corner[0]
            for same, run in itertools.groupby(row == level):
                width = len(list(run))
                if same:
                    bars.append(Rectangle((x, y + corner[1]), width, 1))
                x += width
        look = {"facecolors": color, "edgecolors": color, "linewidths": 0.8, "zorder": 1}
        drawn += [axes.add_collection(PatchCollection(bars, **look))] if bars else []
    return drawn


def name_blocks(axes: Axes, ends: list[int], names: list[str], recipes: list[str]) -> None:
    """Frame a square matrix of blocks, set apart, with a name at the middle of each.

    Args:
        axes: that the matrix is drawn on.
        ends: where the blocks end, from 0 on.
        names: of the blocks.
        recipes: whose names are marks of.
    """
    for end in ends[1:-1]:
        for line in (axes.axhline, axes.axvline):
            line(end, color=CARD, linewidth=2.5, zorder=2)
    middles = [(a + b) / 2 for a, b in itertools.pairwise(ends)]
    axes.set_xlim(0, ends[-1])
    axes.set_ylim(ends[-1], 0)
    axes.set_aspect("equal")
    axes.grid(visible=False)
    axes.set_yticks(middles, names)
    axes.set_xticks(middles, names, rotation=38, ha="right", rotation_mode="anchor")
    for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
        for label, recipe in zip(ticks, recipes, strict=True):
            mark(label, recipe)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
