"""Distances between checkpoints, and their map."""

from __future__ import annotations

import itertools
import statistics
from typing import Any

import numpy as np

from sparseflow.core.errors import MeasureError
from sparseflow.measure.distance import distances
from sparseflow.measure.mds import mds
from sparseflow.plotting.drawing import Axes, Drawing, mpl, style
from sparseflow.plotting.figure import Figure
from sparseflow.plotting.formats import count, finite, short
from sparseflow.plotting.marks import mark
from sparseflow.plotting.palette import CARD, MUTED, color_of
from sparseflow.plotting.table import Table
from sparseflow.plotting.vocabulary import group_label, parse_label, parse_recipe
from sparseflow.runs import Store
from sparseflow.studies.agreement import dead_labels
from sparseflow.studies.evidence import Evidence, first
from sparseflow.studies.load import load_all
from sparseflow.studies.study import Point, Record, Study, Tagged, register_study
from sparseflow.studies.values import Matrix, Number, matrix, rounded

CENTRE = "prune 0 end"
"""The pruned network whose children the map shows."""

STARTS = {"scratch:orders": "scratch:inits 0 start", "prune-restart:orders": CENTRE}
"""Where the members of a group start that have no start of their own."""

_SHAPES = {"": "o", "orders": "o", "inits": "s"}


class Distances(Record, Tagged, frozen=True, tag="distance"):
    """Distances between checkpoints, and a map of their L2 distances.

    Attributes:
        labels: of the checkpoints.
        l2: between weights.
        cosine: 1 minus the cosine between weights.
        hamming: share of mask positions that differ.
        jaccard: 1 minus shared over joint active positions.
        places: (x, y) of each checkpoint on the map; empty for fewer than three.
        stress: Kruskal's stress-1 of the map: 0 is perfect; None without one.
    """

    labels: tuple[str, ...]
    l2: Matrix
    cosine: Matrix
    hamming: Matrix
    jaccard: Matrix
    places: Matrix
    stress: Number

    def tables(self) -> list[Table]:
        """Every pair, and the map."""
        pairs = itertools.combinations(enumerate(self.labels), 2)
        rows = [
            {
                "": f"{a} – {b}",
                "L2": self.l2[i][j],
                "cosine": self.cosine[i][j],
                "mask Hamming": self.hamming[i][j],
                "mask Jaccard": self.jaccard[i][j],
            }
            for (i, a), (j, b) in pairs
        ]
        return [Table.of("distances", rows), *([self.map()] if self.places else [])]

    def map(self) -> Table:
        """Where each checkpoint lies on the map."""
        spots = zip(self.labels, self.places, strict=True)
        rows = [{"": label, "x": x, "y": y} for label, (x, y) in spots]
        return Table.of(f"map of the L2 distances (MDS, stress {self.stress:.3f})", rows)


class DistanceStudy(Study, Tagged, frozen=True, tag="distance"):
    """Distances between all checkpoints, and their map."""

    points: tuple[Point, ...]

    @property
    def checkpoints(self) -> tuple[Point, ...]:
        """All points."""
        return self.points

    def measure(self, store: Store) -> Distances:
        """Measure every pair, weights and masks, and place them on a map."""
        networks, _ = load_all(self, store)
        labels = [network.label for network in networks]
        if len(set(labels)) < len(labels):
            raise MeasureError(f"two checkpoints have one label among {', '.join(labels)}")
        pairs = distances(
            {n.label: n.state for n in networks},
            {n.label: n.masks for n in networks},
            only=dict(networks[0].model.named_parameters()),
        )
        assert pairs.hamming is not None  # masks were given
        assert pairs.jaccard is not None
        placed = mds(pairs) if len(networks) > 2 else None
        return Distances(
            labels=tuple(labels),
            l2=matrix(pairs.l2),
            cosine=matrix(pairs.cosine),
            hamming=matrix(pairs.hamming),
            jaccard=matrix(pairs.jaccard),
            places=matrix(placed.points) if placed else (),
            stress=rounded(placed.stress) if placed else None,
        )


def nearness(results: Evidence) -> str:
    """Distances of starts and ends to the pruned solution."""
    record = first(results, Distances)
    if record is None or CENTRE not in record.labels:
        return ""
    line = record.l2[record.labels.index(CENTRE)]
    gone, said = dead_labels(results), []
    for recipe in dict.fromkeys(parse_label(label).recipe for label in record.labels):
        parts = []
        for when in ("start", "end"):
            values = finite(
                value
                for label, value in zip(record.labels, line, strict=True)
                if (parse_label(label).recipe, parse_label(label).when) == (recipe, when)
                and label not in (CENTRE, *gone)
            )
            if values:
                parts.append(f"{when} {short(statistics.fmean(values))}")
        if parts and recipe != "prune":
            said.append(f"{group_label(recipe)} {', '.join(parts)}")
    stress = "" if record.stress is None else f" The map's stress is {record.stress:.2f}."
    lost = sum(label in gone for label in record.labels)
    left = f" {count(lost, 'dead run')} left out at the end, crosses on the map." * bool(lost)
    text = f"Mean L2 distance to the pruned solution: {'; '.join(said)}.{left}{stress}"
    return text if said else ""


def _draw(results: Evidence) -> Drawing | None:
    """Draw the map of starts and ends, each run an arrow from its start to its end."""
    record = first(results, Distances)
    if record is None or not record.places or record.stress is None:
        return None
    recipes = list(dict.fromkeys(parse_label(label).recipe for label in record.labels))
    with style.styled():
        places = np.array(record.places, dtype=float)
        width, height = np.ptp(places, axis=0)
        tall = 3.6 * min(max(height / max(width, 1e-9), 0.45), 1.4)
        figure = mpl.figure.Figure(figsize=(style.WIDTH, tall + 1.3))
        axes = figure.subplots()
        for recipe in recipes:
            _draw_runs(axes, record, recipe, dead_labels(results))
        axes.set_aspect("equal", adjustable="datalim")
        axes.margins(0.08)
        axes.set_xlabel("L2 distance along the map")
        axes.text(
            0.99, 0.98, f"stress {record.stress:.2f}", transform=axes.transAxes, ha="right",
            va="top", fontsize=9, color=MUTED,
        )  # fmt: skip
        handles = [_mark(MUTED, "o", hollow=True), _mark(MUTED, "o")]
        handles += [_mark(color_of(r), "*" if r == "prune" else _shape(r)) for r in recipes]
        names = ["pruned" if r == "prune" else group_label(r) for r in recipes]
        names = ["start", "end", *names]
        figure.legend(handles, names, loc="outside upper left", ncols=3, columnspacing=1.2)
        return figure


def _draw_runs(axes: Axes, record: Distances, recipe: str, gone: set[str]) -> None:
    color = color_of(recipe)
    at = dict(zip(record.labels, np.array(record.places, dtype=float), strict=True))
    look = {"s": 30, "marker": _shape(recipe), "linewidths": 1.1, "edgecolors": color}
    for label, point in at.items():
        place = parse_label(label)
        if place.recipe != recipe:
            continue
        if place.when == "start":
            mark(axes.scatter(*point, facecolors=CARD, zorder=3, **look), recipe, label)
            continue
        own = label.removesuffix("end") + "start"
        start = at.get(own, at.get(STARTS.get(recipe, "")))
        if start is not None:
            arrow = axes.annotate(
                "", point, start, zorder=2,
                arrowprops={
                    "arrowstyle": "-|>,head_length=0.35,head_width=0.18", "color": color,
                    "alpha": 0.6, "linewidth": 1, "shrinkA": 3, "shrinkB": 3,
                },
            )  # fmt: skip
            mark(arrow.arrow_patch, recipe)
        if label in gone:
            cross = axes.scatter(*point, color=color, marker="x", s=34, linewidths=1.3, zorder=4)
            mark(cross, recipe, f"{label}, dead")
            continue
        if recipe == "prune":
            look |= {"marker": "*", "s": 150, "edgecolors": CARD}
        dot = axes.scatter(*point, facecolors=color, zorder=5 if recipe == "prune" else 4, **look)
        mark(dot, recipe, label)


def _mark(color: str, shape: str, *, hollow: bool = False) -> Any:
    return mpl.lines.Line2D(
        [], [], linestyle="", marker=shape, color=color, markersize=10 if shape == "*" else 5.5,
        markeredgewidth=1.1, markerfacecolor=CARD if hollow else color,
    )  # fmt: skip


def _shape(recipe: str) -> str:
    return _SHAPES.get(parse_recipe(recipe).group, "D")


def _data(results: Evidence) -> Table:
    record = first(results, Distances)
    return record.map() if record and record.places else Table.of("map", [])


MAP = Figure(
    "map",
    "A map of starts and ends",
    "All are children of one pruned network (star). Hollow: starts; filled: ends; an arrow "
    "is a run. Multidimensional scaling places them so that distances on the map are as "
    "near to the L2 distances between weights as two dimensions allow; the stress says how "
    "near (0 is perfect). Its directions mean nothing.",
    "distances between starts and ends",
    _draw,
    _data,
    nearness,
    evidence=True,
)

register_study(
    DistanceStudy,
    Distances,
    probe="distance",
    takes=(2, None),
    order=3,
    figures=(MAP,),
)
