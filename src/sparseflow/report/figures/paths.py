"""Training loss along the straight lines to the pruned solution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sparseflow.report.figures.style import WIDTH, log_values, side_legend, styled
from sparseflow.report.palette import METHODS, MUTED, OTHER
from sparseflow.report.results import Line, Results
from sparseflow.report.seen import dead, lines_from
from sparseflow.report.vocabulary import kind_of

_DASHED = (0, (3.2, 1.4))


@dataclass(frozen=True)
class _Kind:
    """Lines that are drawn alike."""

    name: str
    lines: list[Line]
    below: float
    color: str
    dashes: Any


def paths_figure(results: Results) -> Figure | None:
    """Draw the lines from starts and ends, and from ends as they are and aligned.

    Returns:
        None if no line to a pruned solution was measured.
    """
    first = [
        _kind(results, recipe, when, aligned=False)
        for recipe in ("lottery", "scratch")
        for when in ("start", "end")
    ]
    second = [
        _kind(results, recipe, "end", aligned=aligned)
        for recipe in ("scratch", "rigl+")
        for aligned in (False, True)
    ]
    panels = {"Starts and ends": first, "Ends, plain and permuted to match": second}
    panels = {t: [kind for kind in kinds if kind.lines] for t, kinds in panels.items()}
    panels = {title: kinds for title, kinds in panels.items() if kinds}
    if not panels:
        return None
    with styled():
        figure = Figure(figsize=(WIDTH, 0.5 + 2.25 * len(panels)))
        shared = figure.subplots(len(panels), sharex=True, sharey=True, squeeze=False)[:, 0]
        for axes, (title, kinds) in zip(shared, panels.items(), strict=True):
            axes.set_title(title)
            log_values(axes)
            for alpha in (0, 1):
                axes.axvline(alpha, color=MUTED, linewidth=0.8, zorder=1)
            for kind in kinds:
                _draw(axes, kind)
            lines = [Line2D([], [], color=k.color, linestyle=k.dashes) for k in kinds]
            side_legend(axes, lines, [k.name for k in kinds])
        shared[-1].set_xticks([0, 0.5, 1], ["the run", "½", "pruned"])
        shared[-1].margins(x=0.01)
        shared[-1].set_xlabel("place on the line")
        figure.supylabel("training loss", fontsize=9.5)
        return figure


def _kind(results: Results, recipe: str, when: str, *, aligned: bool) -> _Kind:
    lines = lines_from(results, recipe, when, aligned=aligned)
    gone = sum(dead(line, results.dead_below) for line in lines)
    name = f"{recipe} {'aligned' if aligned else when}"
    if gone:
        name += f"\n({gone} of {len(lines)} dead)"
    color = METHODS.get(kind_of(recipe).method, OTHER)
    dashes = _DASHED if aligned or when == "start" else "-"
    return _Kind(name, lines, results.dead_below, color, dashes)


def _draw(axes: Axes, kind: _Kind) -> None:
    living = [line for line in kind.lines if not dead(line, kind.below)]
    for line in kind.lines:
        alphas, losses = _curve(line)
        look: dict[str, Any] = {"linewidth": 0.7, "alpha": 0.55, "linestyle": kind.dashes}
        if dead(line, kind.below):
            look = {"linewidth": 0.8, "alpha": 0.8, "linestyle": (0, (0.8, 2))}
        axes.plot(alphas, losses, color=kind.color, zorder=2, **look)
    if len(living) > 1:
        curves = [_curve(line) for line in living]
        shared = curves[0][0]
        table = [losses for alphas, losses in curves if np.array_equal(alphas, shared)]
        axes.plot(
            shared, np.median(table, axis=0), color=kind.color, linestyle=kind.dashes,
            linewidth=2.2, zorder=4,
        )  # fmt: skip


def _curve(line: Line) -> tuple[np.ndarray, np.ndarray]:
    """Places and losses; a loss that is not finite leaves a gap."""
    alphas, losses = (np.array(c, dtype=float) for c in (line.alphas, line.train_loss))
    return alphas, np.where(losses > 0, losses, np.nan)
