"""A matrix of shades, in steps of the palette's scale."""

from __future__ import annotations

import itertools
import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.patches import Rectangle

from sparseflow.plotting.palette import SCALE


def round_step(least: float) -> float:
    """Smallest of 1, 2, 2.5, 5 times a power of ten that is no less.

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


def name_blocks(axes: Axes, size: int, middles: list[float], names: list[str]) -> None:
    """Frame a square matrix, with a name at the middle of each of its blocks."""
    axes.set_xlim(0, size)
    axes.set_ylim(size, 0)
    axes.set_aspect("equal")
    axes.grid(visible=False)
    axes.set_yticks(middles, names)
    axes.set_xticks(middles, names, rotation=38, ha="right", rotation_mode="anchor")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
