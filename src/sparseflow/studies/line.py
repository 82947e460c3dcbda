"""Loss and accuracy along the straight line from one checkpoint to another."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparseflow.measure.align import align
from sparseflow.measure.distance import distance
from sparseflow.measure.landscape import loss_and_accuracy
from sparseflow.measure.path import interpolate
from sparseflow.plotting.drawing import Axes, Drawing, mpl, style
from sparseflow.plotting.figure import Figure
from sparseflow.plotting.formats import count, finite, listing, short
from sparseflow.plotting.marks import mark_all
from sparseflow.plotting.palette import MUTED, color_of
from sparseflow.plotting.table import Table
from sparseflow.plotting.vocabulary import parse_label
from sparseflow.runs import Store
from sparseflow.studies.evidence import Evidence, of
from sparseflow.studies.load import examples, load_all
from sparseflow.studies.study import Place, Point, Record, Study, Tagged, points_at, register_study
from sparseflow.studies.values import Number, Row, rounded, row

PARENT = ("prune", "end")
"""Recipe and moment of the network at the far end of the lines that are drawn."""

_DASHED = (0, (3.2, 1.4))


class Line(Record, Tagged, frozen=True, tag="line"):
    """Loss and accuracy between two checkpoints; α = 0 is the start, 1 the end.

    Attributes:
        labels: start and end.
        aligned: whether the start was permuted to match the end.
        distance: L2 distance of the two, as interpolated.
        alphas: where it was evaluated.
        train_loss: mean training loss at each.
        train_accuracy: in %.
        test_loss: mean test loss.
        test_accuracy: in %.
        barrier: of the training loss: most by which it exceeds the chord.
        error_barrier: of the training error, in points of %.
        test_barrier: of the test loss.
    """

    labels: tuple[str, str]
    aligned: bool
    distance: Number
    alphas: Row
    train_loss: Row
    train_accuracy: Row
    test_loss: Row
    test_accuracy: Row
    barrier: Number
    error_barrier: Number
    test_barrier: Number

    def tables(self) -> list[Table]:
        """Ends and barriers, then every place on the line."""
        head = {
            "from": self.labels[0] + (" (aligned)" if self.aligned else ""),
            "to": self.labels[1],
            "L2 distance": self.distance,
            "barrier of the training loss": self.barrier,
            "barrier of the training error, points": self.error_barrier,
            "barrier of the test loss": self.test_barrier,
        }
        return [Table.listing("line", head), Table.of("along the line", self.places())]

    def places(self) -> list[dict[str, Number]]:
        """Name the values at each place."""
        columns = {
            "α": self.alphas,
            "train loss": self.train_loss,
            "train %": self.train_accuracy,
            "test loss": self.test_loss,
            "test %": self.test_accuracy,
        }
        rows = zip(*columns.values(), strict=True)
        return [dict(zip(columns, values, strict=True)) for values in rows]


class LineStudy(Study, Tagged, frozen=True, tag="line"):
    """Interpolate between two checkpoints, on training examples and on the test set.

    Attributes:
        start: at α = 0.
        end: at α = 1.
        aligned: whether the start's units are first permuted to match the end's.
        points: values of α from -0.2 to 1.2.
        examples: of the training set, from its start; the test set is used whole.
    """

    start: Point
    end: Point
    aligned: bool = False
    points: int = 29
    examples: int = 60_000

    @classmethod
    def of(cls, places: Sequence[Place], **options: Any) -> LineStudy:
        """Take two places as start and end."""
        start, end = points_at(places)
        return cls(start, end, **options)

    @property
    def checkpoints(self) -> tuple[Point, ...]:
        """Both ends."""
        return self.start, self.end

    def measure(self, store: Store) -> Line:
        """Evaluate every network on the line."""
        (start, end), data = load_all(self, store)
        a, b = start.state, end.state
        if self.aligned:
            a = dict(align(end.model, b, a).state)
        train, test = examples(data, self.examples), data.test[:]
        on_train, on_test = (
            interpolate(
                end.model, a, b, loss_and_accuracy, batch, self.points, batch_norm_data=train
            )
            for batch in (train, test)
        )
        names = dict(end.model.named_parameters())
        return Line(
            labels=(start.label, end.label),
            aligned=self.aligned,
            distance=rounded(distance(a, b, only=names).l2),
            alphas=row(on_train.alphas),
            train_loss=row(on_train.losses),
            train_accuracy=row(on_train.accuracies),
            test_loss=row(on_test.losses),
            test_accuracy=row(on_test.accuracies),
            barrier=rounded(on_train.barrier),
            error_barrier=rounded(on_train.accuracy_barrier),
            test_barrier=rounded(on_test.barrier),
        )


def lines_from(results: Evidence, recipe: str, when: str, *, aligned: bool) -> list[Line]:
    """Lines to the pruned solution from the starts or ends of a recipe."""
    chosen = []
    for line in of(results, Line):
        start, end = (parse_label(label) for label in line.labels)
        if (
            (start.recipe, start.when, line.aligned) == (recipe, when, aligned)
            and (end.recipe, end.when) == PARENT
            and finite(line.train_loss)
        ):
            chosen.append(line)
    return chosen


def dead(line: Line, below: float) -> bool:
    """Whether the run at α = 0 ended under ``below`` %; one that has yet to start is not dead."""
    if parse_label(line.labels[0]).when == "start":
        return False
    reached = [
        (abs(alpha), value)
        for alpha, value in zip(line.alphas, line.test_accuracy, strict=True)
        if alpha is not None and value is not None
    ]
    return bool(reached) and not min(reached)[1] >= below


def highest_on_lines(results: Evidence) -> str:
    """How high the training loss rises on the way to the pruned solution."""
    said, gone = [], {}
    for recipe in ("lottery", "scratch", "rigl+"):
        parts = []
        for aligned in (False, True):
            lines = lines_from(results, recipe, "end", aligned=aligned)
            living = [line for line in lines if not dead(line, results.dead_below)]
            gone[recipe] = max(gone.get(recipe, 0), len(lines) - len(living))
            tops = finite(_top(line) for line in living)
            if tops:
                top = short(statistics.median(tops))
                parts.append(f"({top} once aligned)" if aligned else top)
        if parts:
            said.append(f"from {recipe} {' '.join(parts)}")
    if not said:
        return ""
    text = f"Highest training loss on the way to the pruned solution (median): {'; '.join(said)}."
    lost = [count(n, f"{recipe} run") for recipe, n in gone.items() if n]
    return text + f" Dead, dotted and left out: {listing(lost)}." * bool(lost)


def _top(line: Line) -> float | None:
    """Highest loss between the two ends; infinite where it is not finite."""
    inside = [
        math.inf if loss is None else loss
        for alpha, loss in zip(line.alphas, line.train_loss, strict=True)
        if alpha is not None and -1e-9 <= alpha <= 1 + 1e-9
    ]
    return max(inside, default=None)


@dataclass(frozen=True)
class _Bundle:
    """Lines that are drawn alike."""

    recipe: str
    name: str
    lines: list[Line]
    below: float
    color: str
    dashes: Any


def _draw(results: Evidence) -> Drawing | None:
    first = [
        _bundle(results, recipe, when, aligned=False)
        for recipe in ("lottery", "scratch")
        for when in ("start", "end")
    ]
    second = [
        _bundle(results, recipe, "end", aligned=aligned)
        for recipe in ("scratch", "rigl+")
        for aligned in (False, True)
    ]
    panels = {"Starts and ends": first, "Ends, plain and permuted to match": second}
    panels = {title: [b for b in bundles if b.lines] for title, bundles in panels.items()}
    panels = {title: bundles for title, bundles in panels.items() if bundles}
    if not panels:
        return None
    with style.styled():
        figure = mpl.figure.Figure(figsize=(style.WIDTH, 0.5 + 2.25 * len(panels)))
        shared = figure.subplots(len(panels), sharex=True, sharey=True, squeeze=False)[:, 0]
        for axes, (title, bundles) in zip(shared, panels.items(), strict=True):
            axes.set_title(title)
            style.log_values(axes)
            for alpha in (0, 1):
                axes.axvline(alpha, color=MUTED, linewidth=0.8, zorder=1)
            for bundle in bundles:
                _draw_bundle(axes, bundle)
            lines = [mpl.lines.Line2D([], [], color=b.color, linestyle=b.dashes) for b in bundles]
            names, recipes = [b.name for b in bundles], [b.recipe for b in bundles]
            style.side_legend(axes, lines, names, recipes)
        shared[-1].set_xticks([0, 0.5, 1], ["the run", "½", "pruned"])
        shared[-1].margins(x=0.01)
        shared[-1].set_xlabel("place on the line")
        figure.supylabel("training loss", fontsize=9.5)
        return figure


def _bundle(results: Evidence, recipe: str, when: str, *, aligned: bool) -> _Bundle:
    lines = lines_from(results, recipe, when, aligned=aligned)
    gone = sum(dead(line, results.dead_below) for line in lines)
    name = f"{recipe} {'aligned' if aligned else when}"
    if gone:
        name += f"\n({gone} of {len(lines)} dead)"
    dashes = _DASHED if aligned or when == "start" else "-"
    return _Bundle(recipe, name, lines, results.dead_below, color_of(recipe), dashes)


def _draw_bundle(axes: Axes, bundle: _Bundle) -> None:
    living = [line for line in bundle.lines if not dead(line, bundle.below)]
    for line in bundle.lines:
        alphas, losses = _curve(line)
        look: dict[str, Any] = {"linewidth": 0.7, "alpha": 0.55, "linestyle": bundle.dashes}
        if dead(line, bundle.below):
            look = {"linewidth": 0.8, "alpha": 0.8, "linestyle": (0, (0.8, 2))}
        curve = axes.plot(alphas, losses, color=bundle.color, zorder=2, **look)
        mark_all(curve, bundle.recipe, " – ".join(line.labels))
    if len(living) > 1:
        curves = [_curve(line) for line in living]
        shared = curves[0][0]
        table = [losses for alphas, losses in curves if np.array_equal(alphas, shared)]
        middle = axes.plot(
            shared, np.median(table, axis=0), color=bundle.color, linestyle=bundle.dashes,
            linewidth=2.2, zorder=4,
        )  # fmt: skip
        mark_all(middle, bundle.recipe, f"{bundle.name.partition(chr(10))[0]}, median")


def _curve(line: Line) -> tuple[np.ndarray, np.ndarray]:
    """Places and losses; a loss that is not finite leaves a gap."""
    alphas, losses = (np.array(c, dtype=float) for c in (line.alphas, line.train_loss))
    return alphas, np.where(losses > 0, losses, np.nan)


def _data(results: Evidence) -> Table:
    return Table.of(
        "lines between solutions",
        [
            {"from": line.labels[0], "to": line.labels[1], "aligned": line.aligned, **place}
            for line in of(results, Line)
            for place in line.places()
        ],
    )


PATHS = Figure(
    "paths",
    "Along the straight line to the pruned solution",
    "Training loss on the way from a network to the pruned network of its seed, and a "
    "little beyond either. Thin lines: seeds; thick: their median over the living; dotted: "
    "dead runs. Aligned: hidden units first permuted to match the pruned network's, so "
    "that equal functions with other names of units do not count as far apart.",
    "lines to the pruned solution",
    _draw,
    _data,
    highest_on_lines,
    evidence=True,
)

register_study(
    LineStudy,
    Line,
    probe="interpolate",
    takes=(2, 2),
    options=("examples", "aligned"),
    order=4,
    figures=(PATHS,),
)
