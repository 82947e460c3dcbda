"""Accuracy by method and initialisation: every seed a dot, the dead at chance."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparseflow.plotting.drawing import Axes, Drawing, mpl, style
from sparseflow.plotting.figure import Figure
from sparseflow.plotting.formats import accuracy
from sparseflow.plotting.marks import mark, mark_all
from sparseflow.plotting.palette import CARD, INK, MUTED
from sparseflow.plotting.table import Table
from sparseflow.plotting.vocabulary import parse_recipe
from sparseflow.report import findings
from sparseflow.report.results import Results, RunValues
from sparseflow.report.summary import Row, rows

FLOOR = 0.1
"""Least error in % that the scale shows."""

_TICKS = (11, 50, 80, 90, 95, 98, 99, 99.5)


def _draw(results: Results) -> Drawing | None:
    """Draw final test accuracies on a scale logarithmic in the error."""
    shown = rows(results)
    if not shown:
        return None
    with style.styled():
        height = 1.05 + sum(0.25 + 0.14 * bool(row.settings) for row in shown)
        figure = mpl.figure.Figure(figsize=(style.WIDTH, height))
        axes = figure.subplots()
        places = _places(shown)
        for row, place in zip(shown, places, strict=True):
            _draw_row(axes, row, place)
        axes.set_yticks(places, [_tick(row) for row in shown])
        for label, row in zip(axes.get_yticklabels(), shown, strict=True):
            mark(label, row.recipe)
        axes.set_ylim(places[-1] + 0.6, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        best = max(run.test_accuracy for row in shown for run in row.runs)
        _accuracies(axes, best)
        handles, labels = _legend(shown, results.references.name)
        figure.legend(handles, labels, loc="outside upper left", ncols=3, columnspacing=1.4)
        return figure


def _tick(row: Row) -> str:
    return "\n".join([row.recipe, row.settings]) if row.settings else row.recipe


def _places(shown: list[Row]) -> list[float]:
    """Vertical places, with a gap between methods."""
    places, place = [], 0.0
    for before, row in zip([None, *shown], shown, strict=False):
        if before is not None:
            same = parse_recipe(before.recipe).method == parse_recipe(row.recipe).method
            place += (0.9 if same else 1.2) + 0.5 * bool(row.settings)
        places.append(place)
    return places


def _draw_row(axes: Axes, row: Row, place: float) -> None:
    looks = style.stroke(row.recipe)
    axes.axhline(place, color=MUTED, linewidth=0.4, alpha=0.35, zorder=0)
    count = len(row.living)
    spread = np.linspace(-0.16, 0.16, count) if count > 1 else np.zeros(count)
    if row.interval:
        ends = [_error(end) for end in row.interval]
        band = axes.plot(ends, [place] * 2, color=looks.color, linewidth=5, alpha=0.25, zorder=1)
        mark_all(band, row.recipe, f"{row.name}, range of the living")
    for run, away in zip(row.living, spread, strict=True):
        dot = axes.scatter(
            [_error(run.test_accuracy)], [place + away], s=17, marker=looks.marker,
            color=looks.color, alpha=0.85, linewidths=0, zorder=3,
        )  # fmt: skip
        mark(dot, row.recipe, _says(row, run))
    if row.median is not None:
        ends, sides = [_error(row.median)] * 2, [place - 0.33, place + 0.33]
        bar = axes.plot(ends, sides, color=looks.color, linewidth=2, zorder=2)
        mark_all(bar, row.recipe, f"{row.name}, median of the living: {accuracy(row.median)} %")
    _draw_dead(axes, row, place)
    _draw_reference(axes, row, place)


def _says(row: Row, run: RunValues) -> str:
    dead = ", dead" * run.dead
    return f"{row.name}, seed {run.seed}: {accuracy(run.test_accuracy)} %{dead}"


def _draw_dead(axes: Axes, row: Row, place: float) -> None:
    color, dead = style.stroke(row.recipe).color, [run for run in row.runs if run.dead]
    for run in dead:
        cross = axes.scatter(
            [_error(run.test_accuracy)], [place], s=30, marker="x", color=color, zorder=3
        )
        mark(cross, row.recipe, _says(row, run))
    if dead:
        least = min(_error(run.test_accuracy) for run in dead)
        text = axes.annotate(
            f"{len(dead)} of {len(row.runs)} dead", (least, place), xytext=(7, 0),
            textcoords="offset points", va="center", fontsize=9, color=color,
        )  # fmt: skip
        mark(text, row.recipe)


def _draw_reference(axes: Axes, row: Row, place: float) -> None:
    if row.reference is None:
        return
    under = place + 0.36
    codes = [_error(value) for value in row.reference.accuracy]
    theirs = axes.scatter(
        codes, [under] * len(codes), s=13, marker="^", color=INK, linewidths=0, zorder=4
    )
    mark(theirs, row.recipe, f"{row.recipe}, measured by others")
    if row.reference.published:
        mean = row.reference.published[0]
        at = _error(mean)
        published = axes.scatter(
            [at], [under], s=20, marker="^", facecolors=CARD, edgecolors=INK, linewidths=0.8,
            zorder=5,
        )  # fmt: skip
        mark(
            published,
            row.recipe,
            f"{row.recipe}, published: {accuracy(row.reference.published[0])} %",
        )


def _accuracies(axes: Axes, best: float) -> None:
    axes.set_xscale("log")
    axes.set_xlim(100, max(FLOOR, (100 - best) * 0.8))
    ticks = [100 - t for t in _TICKS if 100 - t >= (100 - best) * 0.8]
    style.fixed_ticks(axes.xaxis, ticks, lambda error: f"{100 - error:g}")
    axes.set_xlabel("test accuracy in % (logarithmic in the error)")


def _legend(shown: list[Row], others: str) -> tuple[list[Any], list[str]]:
    def mark(marker: str, **options: object) -> Any:
        look = {"linestyle": "", "marker": marker, "color": MUTED, "markersize": 5, **options}
        return mpl.lines.Line2D([], [], **look)

    entries = [(mark("o"), "a seed"), (mark("|", markeredgewidth=2), "median")]
    if any(row.interval for row in shown):
        band = mpl.lines.Line2D([], [], color=MUTED, linewidth=5, alpha=0.35)
        entries.append((band, "range"))
    if any(row.dead for row in shown):
        entries.append((mark("x"), "dead"))
    if any(row.reference and row.reference.accuracy for row in shown):
        entries.append((mark("^", markerfacecolor=INK, markeredgecolor=INK), others))
    if any(row.reference and row.reference.published for row in shown):
        entries.append((mark("^", markerfacecolor=CARD, markeredgecolor=INK), "published"))
    return [handle for handle, _ in entries], [label for _, label in entries]


def _error(percent: float) -> float:
    return max(100 - percent, FLOOR)


def _data(results: Results) -> Table:
    each = [
        {
            "recipe": run.recipe,
            "settings": run.settings,
            "seed": run.seed,
            "accuracy": run.test_accuracy,
            "dead": run.dead,
        }
        for run in results.runs
    ]
    return Table.of("test accuracy of every run", each)


def _finding(results: Results) -> str:
    table = findings.compared(results)
    return f"{findings.dead_or_alive(table)} {findings.dynamic(table)}".strip()


ACCURACY = Figure(
    "accuracy",
    "Accuracy by method and initialisation",
    "Every seed is a mark: a circle for masked dense initialisation and for methods that "
    "have one only, a square for Liu et al.'s, a diamond for per-neuron fan-in (+). The bar is the "
    "median of the living runs. Crosses are dead runs, at chance.",
    "the training recipes",
    _draw,
    _data,
    _finding,
)
