"""Signal and gradient at initialisation against sparsity, for the initialisations."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from sparseflow.plotting.drawing import Axes, Drawing, mpl, style
from sparseflow.plotting.figure import Figure
from sparseflow.plotting.table import Table
from sparseflow.plotting.vocabulary import inits_in_order, mark_of
from sparseflow.report import findings
from sparseflow.report.results import Results, StartValues
from sparseflow.studies.values import Number

Value = Callable[[StartValues], Number]
_TICKS = (0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995)


_SIGNAL: dict[str, Value] = {
    "On N(0, 1) noise": lambda s: s.signal_noise,
    "On images": lambda s: s.signal_images,
}
_NORM: dict[str, Value] = {
    "All active parameters": lambda s: s.norms.total,
    "Kernels alone": lambda s: s.norms.kernels,
}


def _draw(results: Results, label: str, panels: dict[str, Value]) -> Drawing | None:
    if not results.at_start:
        return None
    inits = inits_in_order(s.init for s in results.at_start)
    with style.styled():
        figure = mpl.figure.Figure(figsize=(style.WIDTH, 4.6))
        shared = figure.subplots(len(panels), sharex=True)
        for axes, (title, value) in zip(shared, panels.items(), strict=True):
            axes.set_title(title)
            axes.set_ylabel(label)
            style.log_values(axes)
            for init in inits:
                _draw_init(axes, init, [s for s in results.at_start if s.init == init], value)
        _sparsities(shared[-1], max(s.sparsity for s in results.at_start))
        handles = [
            mpl.lines.Line2D(
                [],
                [],
                color=mark.color[0],
                linestyle=mark.dashes,
                marker=mark.marker,
                markersize=4,
            )
            for mark in map(mark_of, inits)
        ]
        figure.legend(handles, [mark_of(init).label for init in inits], loc="outside upper left")
        return figure


def _draw_init(axes: Axes, init: str, points: list[StartValues], value: Value) -> None:
    table: dict[float, list[float]] = {}
    for point in points:
        number = value(point)
        if number:
            table.setdefault(1 - point.sparsity, []).append(number)
    density = sorted(table, reverse=True)
    columns = [table[d] for d in density]
    low, high = [min(c) for c in columns], [max(c) for c in columns]
    mark = mark_of(init)
    axes.fill_between(density, low, high, color=mark.color[0], alpha=0.18, linewidth=0)
    axes.plot(
        density,
        [float(np.median(c)) for c in columns],
        color=mark.color[0],
        linestyle=mark.dashes,
        marker=mark.marker,
        markersize=4,
    )


def _sparsities(axes: Axes, highest: float) -> None:
    axes.set_xscale("log")
    axes.invert_xaxis()
    shown = [1 - t for t in _TICKS if t <= highest + 1e-9]
    style.fixed_ticks(axes.xaxis, shown, lambda d: f"{100 * (1 - d):.3g} %")
    axes.set_xlabel("sparsity (logarithmic in the density)")


def _data(results: Results, panels: dict[str, Value]) -> Table:
    points = [
        {"initialisation": s.init, "sparsity": s.sparsity, "seed": s.seed}
        | {title: value(s) for title, value in panels.items()}
        for s in results.at_start
    ]
    return Table.of("networks at initialisation", points)


START_SIGNAL = Figure(
    "start-signal",
    "Signal at initialisation against sparsity",
    "Standard deviation of the output before the softmax, He scale, masks uneven over the "
    "neurons. Line: median over seeds; band: their range.",
    "the init-* recipes",
    partial(_draw, label="std of the output", panels=_SIGNAL),
    partial(_data, panels=_SIGNAL),
    findings.signal_at_start,
)

START_NORM = Figure(
    "start-norm",
    "Gradient norm at initialisation against sparsity",
    "The same networks: gradient norm on the probe batch before any training.",
    "the init-* recipes",
    partial(_draw, label="gradient norm", panels=_NORM),
    partial(_data, panels=_NORM),
    findings.norm_at_start,
)
