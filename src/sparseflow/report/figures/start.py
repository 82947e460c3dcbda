"""Signal and gradient at initialisation against sparsity, for the initialisations."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from sparseflow.report.figures.style import DASHES, MARKERS, WIDTH, log_values, styled
from sparseflow.report.palette import INITS
from sparseflow.report.results import Number, Results, StartFigures
from sparseflow.report.vocabulary import INITS as NAMES

Value = Callable[[StartFigures], Number]
_TICKS = (0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995)


def start_signal_figure(results: Results) -> Figure | None:
    """Draw the standard deviation of the output before the softmax.

    Returns:
        None if no network was measured at initialisation.
    """
    return _figure(
        results,
        "std of the output",
        {
            "On N(0, 1) noise, as in the paper": lambda s: s.signal_noise,
            "On images": lambda s: s.signal_images,
        },
    )


def start_norm_figure(results: Results) -> Figure | None:
    """Draw the gradient norm, over all active parameters and over kernels alone.

    Returns:
        None if no network was measured at initialisation.
    """
    return _figure(
        results,
        "gradient norm",
        {
            "All active parameters": lambda s: s.norms.total,
            "Kernels alone": lambda s: s.norms.kernels,
        },
    )


def _figure(results: Results, label: str, panels: dict[str, Value]) -> Figure | None:
    if not results.at_start:
        return None
    inits = [name for name in NAMES if any(s.init == name for s in results.at_start)]
    with styled():
        figure = Figure(figsize=(WIDTH, 4.6))
        shared = figure.subplots(len(panels), sharex=True)
        for axes, (title, value) in zip(shared, panels.items(), strict=True):
            axes.set_title(title)
            axes.set_ylabel(label)
            log_values(axes)
            for init in inits:
                _draw(axes, init, [s for s in results.at_start if s.init == init], value)
        _sparsities(shared[-1], max(s.sparsity for s in results.at_start))
        handles = [
            Line2D([], [], color=INITS[i], linestyle=DASHES[i], marker=MARKERS[i], markersize=4)
            for i in inits
        ]
        figure.legend(handles, [NAMES[i] for i in inits], loc="outside upper left")
        return figure


def _draw(axes: Axes, init: str, points: list[StartFigures], value: Value) -> None:
    table: dict[float, list[float]] = {}
    for point in points:
        number = value(point)
        if number:
            table.setdefault(1 - point.sparsity, []).append(number)
    density = sorted(table, reverse=True)
    columns = [table[d] for d in density]
    low, high = [min(c) for c in columns], [max(c) for c in columns]
    axes.fill_between(density, low, high, color=INITS[init], alpha=0.18, linewidth=0)
    axes.plot(
        density,
        [float(np.median(c)) for c in columns],
        color=INITS[init],
        linestyle=DASHES[init],
        marker=MARKERS[init],
        markersize=4,
    )


def _sparsities(axes: Axes, highest: float) -> None:
    axes.set_xscale("log")
    axes.invert_xaxis()
    shown = [1 - t for t in _TICKS if t <= highest + 1e-9]
    axes.xaxis.set_major_locator(FixedLocator(shown))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda d, _: f"{100 * (1 - d):.3g} %"))
    axes.set_xlabel("sparsity (logarithmic in the density)")
