"""How all figures look: one colour a method, one line style and marker an initialisation.

Colours are Okabe and Ito's, chosen for colour-blind readers, with two more.
Figures are 5 inches wide, so that text of 9 points is still read on a phone
390 pixels wide.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from sparseflow.plotting.marks import mark_all, mark_axes, revealed
from sparseflow.plotting.palette import CARD, GRID, INK, MUTED, SCALE, color_of
from sparseflow.plotting.vocabulary import OWN_INIT, mark_of, parse_recipe

WIDTH = 5.0

# A hundredth of a point is enough for any screen, and halves the file.
_GEOMETRY = re.compile(r' (?:d|x|y|points)="[^"]*"')
_DECIMALS = re.compile(r"(\.\d\d)\d+")
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

_STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 9.5,
    "axes.linewidth": 0.7,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlepad": 5,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.unicode_minus": True,
    "figure.constrained_layout.h_pad": 0.06,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.04,
    "figure.facecolor": CARD,
    "font.family": ["DejaVu Sans"],
    "font.size": 9.5,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "legend.handlelength": 1.9,
    "legend.handletextpad": 0.6,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "savefig.facecolor": CARD,
    "svg.fonttype": "none",
    "svg.hashsalt": "sparseflow",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "xtick.labelsize": 9,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
    "ytick.labelsize": 9,
}


@dataclass(frozen=True)
class Stroke:
    """Colour, dashes and marker of a recipe."""

    color: str
    dashes: Any
    marker: str


def stroke(recipe: str) -> Stroke:
    """How a recipe's curve is drawn; methods that have one initialisation only are drawn solid."""
    name = parse_recipe(recipe)
    mark = mark_of(name.init)
    alone = not mark.suffix and name.method in ("dense", "small-dense", "prune", *OWN_INIT)
    return Stroke(color_of(recipe), "-" if alone else mark.dashes, mark.marker)


@contextmanager
def styled() -> Iterator[None]:
    """Draw and save in this style, whatever the user's own settings are."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        yield


def svg(figure: Figure) -> str:
    """Vector form; equal figures give equal bytes. It fixes the layout for :func:`png`."""
    out = io.StringIO()
    for axes in figure.axes:
        mark_axes(axes)
    with styled(), warnings.catch_warnings():
        # A name wider than the picture leaves the axes where they are.
        warnings.filterwarnings("ignore", "constrained_layout not applied")
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
        figure.set_layout_engine("none")  # laid out once is enough
    text = _GEOMETRY.sub(lambda found: _DECIMALS.sub(r"\1", found[0]), out.getvalue())
    return revealed(text)


def png(figure: Figure) -> bytes:
    """Raster form, twice the resolution of a screen; equal figures give equal bytes."""
    out = io.BytesIO()
    with styled():
        figure.savefig(out, format="png", dpi=200, metadata={"Software": None})
    return out.getvalue()


def log_steps(axes: Axes, first: int, last: int) -> None:
    """Logarithmic steps, with room for step 0 at the left."""
    axes.set_xscale("symlog", linthresh=first, linscale=0.4)
    powers = 10.0 ** np.arange(0, 8)
    ticks = [0, first, *(p for p in powers if 1.9 * first < p <= last)]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlim(0, last)


def even_steps(axes: Axes, last: int) -> None:
    """Training steps from 0 to the last, evenly."""
    axes.set_xlim(0, last)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def log_values(axes: Axes) -> None:
    """Logarithmic values, written out in full."""
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _power(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _power(value: float) -> str:
    if value >= 1e-3:
        return f"{value:g}"
    return "10" + str(round(np.log10(value))).translate(_RAISED)


def side_legend(axes: Axes, handles: list, labels: list[str], recipes: Sequence[str] = ()) -> None:
    """Legend at the right of the axes; its entries are marks of these recipes."""
    legend = axes.legend(
        handles,
        labels,
        loc="center left",
        bbox_to_anchor=(1.02, 0.5),
        borderaxespad=0,
        labelspacing=0.45,
    )
    for recipe, *entry in zip(recipes, legend.legend_handles, legend.get_texts(), strict=False):
        mark_all(entry, recipe)


def scale_bar(
    figure: Figure, axes: Axes, bounds: np.ndarray, labels: list[str], *, aspect: int
) -> Colorbar:
    """Bar above the axes that says what each shade of the palette's scale stands for."""
    mappable = ScalarMappable(BoundaryNorm(list(bounds), len(SCALE)), ListedColormap(SCALE))
    bar = figure.colorbar(mappable, ax=axes, location="top", aspect=aspect, pad=0.02)
    bar.set_ticks(list(bounds), labels=labels)
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.ax.tick_params(length=0)
    return bar


def fixed_ticks(axis: Axis, ticks: Sequence[float | int], show: Callable[[float], str]) -> None:
    """Place ticks where they are asked for, and nowhere else."""
    axis.set_major_locator(FixedLocator(list(ticks)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: show(value)))
