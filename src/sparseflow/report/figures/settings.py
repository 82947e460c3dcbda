"""Accuracy and gradient norm against a setting: a line for each recipe."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from sparseflow.plotting.drawing import Axes, Drawing, mpl, style
from sparseflow.plotting.figure import Figure
from sparseflow.plotting.formats import accuracy, finite
from sparseflow.plotting.marks import mark
from sparseflow.plotting.table import Table
from sparseflow.report.results import Results, RunValues, described

DENSITY = "density"

DECADES = 30
"""Ratio of gradient norms from which their scale is logarithmic."""


@dataclass(frozen=True)
class Series:
    """Runs of one recipe under several values of one setting, the others being equal.

    Attributes:
        recipe: short name.
        others: what else the recipe's runs differ in; empty if nothing.
        points: runs by the value of the setting.
    """

    recipe: str
    others: str
    points: dict[float, list[RunValues]]

    @property
    def name(self) -> str:
        """Recipe, and the settings that are equal."""
        return f"{self.recipe} ({self.others})" if self.others else self.recipe


def value_of(run: RunValues, path: str) -> float | str | None:
    """The setting of a run; None if its recipe's runs do not differ in it."""
    return run.density if path == DENSITY else dict(run.varied).get(path)


def series(results: Results, path: str) -> list[Series]:
    """Lines against one setting, of two values or more."""
    grouped: dict[tuple[str, str], dict[float, list[RunValues]]] = defaultdict(dict)
    for recipe in dict.fromkeys(run.recipe for run in results.runs):
        runs = [run for run in results.runs if run.recipe == recipe]
        runs = [run for run in runs if isinstance(value_of(run, path), float)]
        following = _following(runs, path)
        for run in runs:
            others = described([(p, v) for p, v in run.varied if p not in following])
            value = value_of(run, path)
            assert isinstance(value, float)
            grouped[recipe, others].setdefault(value, []).append(run)
    lines = [Series(*key, dict(sorted(points.items()))) for key, points in grouped.items()]
    return [line for line in lines if len(line.points) > 1]


def _following(runs: Sequence[RunValues], path: str) -> set[str]:
    """The setting itself, and those that each of its values decides, as a scale does."""
    values: dict[str, set[tuple]] = defaultdict(set)
    for run in runs:
        for other, value in run.varied:
            values[other].add((value_of(run, path), value))
    many = {value_of(run, path) for run in runs}
    return {path} | {other for other, pairs in values.items() if len(pairs) <= len(many)}


def varied_setting(results: Results) -> str | None:
    """The number, other than density, that takes the most values in one recipe's runs."""
    paths = dict.fromkeys(
        path for run in results.runs for path, v in run.varied if isinstance(v, float)
    )
    lines = {path: series(results, path) for path in paths if path != DENSITY}
    most = {p: max(len(each.points) for each in found) for p, found in lines.items() if found}
    return max(most, key=lambda path: most[path], default=None)


def _drawn_path(results: Results, path: str | None) -> str | None:
    return path or varied_setting(results)


def _draw(results: Results, path: str | None) -> Drawing | None:
    chosen = _drawn_path(results, path)
    lines = series(results, chosen) if chosen else []
    if not chosen or not lines:
        return None
    with style.styled():
        figure = mpl.figure.Figure(figsize=(style.WIDTH, 2.2 + 2.2 + 0.2 * len(lines)))
        upper, lower = figure.subplots(2, sharex=True)
        for line in lines:
            _draw_line(upper, line, lambda run: run.test_accuracy, "{:.2f} %")
            _draw_line(lower, line, lambda run: run.early.total, "{:.2g}")
        upper.set_ylabel("test accuracy in %")
        lower.set_ylabel("mean gradient norm")
        _scale(lower, chosen, lines)
        norms = finite(dot.get_ydata()[0] for dot in lower.lines)
        if norms and min(norms) > 0 and max(norms) / min(norms) > DECADES:
            style.log_values(lower)
        handles, labels = _legend(lines)
        figure.legend(handles, labels, loc="outside upper left", ncols=2)
        return figure


def _draw_line(axes: Axes, line: Series, value: object, shown: str) -> None:
    looks = style.stroke(line.recipe)
    medians: list[tuple[float, float]] = []
    for x, runs in line.points.items():
        living = finite(value(run) for run in runs if not run.dead)  # type: ignore[operator]
        if living:
            medians.append((x, statistics.median(living)))
        for run in runs:
            number = value(run)  # type: ignore[operator]
            if number is None:
                continue
            sign = "x" if run.dead else looks.marker
            (dot,) = axes.plot([x], [number], sign, color=looks.color, markersize=4, alpha=0.8)
            dead = ", dead" * run.dead
            says = f"{line.name}, seed {run.seed}, at {x:g}: {shown.format(number)}{dead}"
            mark(dot, line.recipe, says)
    if medians:
        at, middles = zip(*medians, strict=True)
        (curve,) = axes.plot(at, middles, color=looks.color, linestyle=looks.dashes)
        mark(curve, line.recipe, f"{line.name}, median of the living")


def _scale(axes: Axes, path: str, lines: Sequence[Series]) -> None:
    values = sorted({x for line in lines for x in line.points})
    axes.set_xlabel(path)
    if values[0] > 0 and values[-1] / values[0] > 3:
        axes.set_xscale("log")
    shown = "{:g}".format
    if path == DENSITY:
        axes.invert_xaxis()
        axes.set_xlabel("sparsity")
        shown = lambda d: f"{100 * (1 - d):.4g} %"  # noqa: E731
    step = -(-len(values) // 7)
    style.fixed_ticks(axes.xaxis, values[::step], shown)


def _legend(lines: Sequence[Series]) -> tuple[list, list[str]]:
    looks = [style.stroke(line.recipe) for line in lines]
    handles = [
        mpl.lines.Line2D(
            [], [], color=k.color, linestyle=k.dashes, marker=k.marker, markersize=4
        )
        for k in looks
    ]  # fmt: skip
    names = [line.name for line in lines]
    if any(run.dead for line in lines for runs in line.points.values() for run in runs):
        handles.append(mpl.lines.Line2D([], [], color="none", marker="x", markeredgecolor="gray"))
        names.append("dead")
    return handles, names


def _data(results: Results, path: str | None) -> Table:
    chosen = _drawn_path(results, path) or ""
    points = [
        {"recipe": line.recipe, "others": line.others, "seed": run.seed, chosen: x}
        | {"accuracy": run.test_accuracy, "dead": run.dead, "norm": run.early.total}
        for line in series(results, chosen)
        for x, runs in line.points.items()
        for run in runs
    ]
    return Table.of(f"accuracy and gradient norm against {chosen}", points)


def _finding(results: Results, path: str | None) -> str:
    """For each line the value under which it is best, and what it reaches elsewhere."""
    chosen = _drawn_path(results, path) or ""
    said = []
    for line in series(results, chosen):
        middles = {x: _median(runs) for x, runs in line.points.items()}
        living = {x: middle for x, middle in middles.items() if middle is not None}
        dead = [f"{x:g}" for x, middle in middles.items() if middle is None]
        text = f"no run of {line.name} lives"
        if living:
            best = max(living, key=lambda x: living[x])
            text = f"{line.name} is best at {best:g}, {accuracy(living[best])} %"
            worst = min(living, key=lambda x: living[x])
            text += f" (least at {worst:g}: {accuracy(living[worst])} %)" * (worst != best)
        said.append(text + (f", all runs at {', '.join(dead)} dead" if living and dead else ""))
    return f"Medians over the living seeds, {chosen}: {'; '.join(said)}." if said else ""


def _median(runs: Sequence[RunValues]) -> float | None:
    living = [run.test_accuracy for run in runs if not run.dead]
    return statistics.median(living) if living else None


_CAPTION = (
    "Above: test accuracy at the end; below: mean gradient norm early in training. Every run is a "
    "mark, × where it is dead; lines are medians over the living seeds."
)

SPARSITY = Figure(
    "sparsity",
    "Accuracy and gradient norm against sparsity",
    f"{_CAPTION} Sparsity is logarithmic in the density where it varies much.",
    "runs of one recipe at several densities",
    partial(_draw, path=DENSITY),
    partial(_data, path=DENSITY),
    partial(_finding, path=DENSITY),
)

SETTING = Figure(
    "setting",
    "Accuracy and gradient norm against a setting",
    f"{_CAPTION} Recipes whose runs differ in other settings, too, have a line for each.",
    "runs of one recipe that differ in a number, such as --set optimizer.lr=0.05,0.1",
    partial(_draw, path=None),
    partial(_data, path=None),
    partial(_finding, path=None),
)
