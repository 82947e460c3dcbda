"""Predictions of groups of runs on the test set: agreement within groups, and ensembles."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from sparseflow.core.errors import MeasureError
from sparseflow.measure.agreement import ensemble, pairwise, predict, score
from sparseflow.plotting.drawing import Drawing, heatmap, mpl, style
from sparseflow.plotting.figure import Figure
from sparseflow.plotting.formats import count, finite, listing
from sparseflow.plotting.marks import mark, mark_all
from sparseflow.plotting.palette import CARD, INK, ON_SCALE, SCALE
from sparseflow.plotting.table import Table
from sparseflow.plotting.vocabulary import group_label
from sparseflow.runs import Store
from sparseflow.studies.evidence import Evidence, first
from sparseflow.studies.load import load_all
from sparseflow.studies.study import Place, Point, Record, Study, Tagged, points_at, register_study
from sparseflow.studies.values import Matrix, Number, dead_below, matrix, rounded


class Member(msgspec.Struct, frozen=True):
    """Predictions of one run on the test set.

    Attributes:
        label: the run.
        accuracy: in %.
        loss: mean cross-entropy.
        ece: expected calibration error.
        dead: whether it ended at chance.
        reference: disagreement with the reference; None without one.
        divergence: KL(reference ‖ member) in nats; None without one.
    """

    label: str
    accuracy: Number
    loss: Number
    ece: Number
    dead: bool
    reference: Number
    divergence: Number


class Ensemble(msgspec.Struct, frozen=True):
    """Mean of the softmax outputs of the living members of a group.

    Attributes:
        size: members.
        accuracy: in %.
        loss: mean cross-entropy.
        ece: expected calibration error.
        gain: its accuracy minus the mean of its members', in points of %.
        error: standard error of the gain over the test examples.
    """

    size: int
    accuracy: Number
    loss: Number
    ece: Number
    gain: Number
    error: Number


class GroupRecord(msgspec.Struct, frozen=True):
    """All runs of a group, and the ensemble of the living ones; None for fewer than two."""

    name: str
    members: tuple[Member, ...]
    ensemble: Ensemble | None


class Agreement(Record, Tagged, frozen=True, tag="agreement"):
    """Predictions of groups of runs.

    Attributes:
        groups: in the order asked for.
        labels: every member of every group in turn, then the reference.
        checkpoints: run and step of each: one may be a member of two groups.
        disagreement: between all of them.
        divergence: KL(row ‖ column) in nats.
    """

    groups: tuple[GroupRecord, ...]
    labels: tuple[str, ...]
    checkpoints: tuple[str, ...]
    disagreement: Matrix
    divergence: Matrix

    def tables(self) -> list[Table]:
        """Members, pairs and ensembles."""
        members = [
            {
                "": m.label,
                "accuracy %": m.accuracy,
                "loss": m.loss,
                "ECE": m.ece,
                "disagreement with the reference": m.reference,
                "KL": m.divergence,
            }
            for group in self.groups
            for m in group.members
        ]
        ensembles = [
            {
                "ensemble": group.name,
                "size": e.size,
                "accuracy %": e.accuracy,
                "loss": e.loss,
                "ECE": e.ece,
                "gain, points": f"{e.gain:+.2f} ± {e.error:.2f}",
            }
            for group in self.groups
            if (e := group.ensemble) is not None
        ]
        return [Table.of("members", members), self.pairs(), Table.of("ensembles", ensembles)]

    def pairs(self) -> Table:
        """Every pair of networks."""
        rows = [
            {
                "": f"{a} – {b}",
                "disagreement": self.disagreement[i][j],
                "KL →": self.divergence[i][j],
                "KL ←": self.divergence[j][i],
            }
            for (i, a), (j, b) in itertools.combinations(enumerate(self.labels), 2)
        ]
        return Table.of("pairs", rows)


class Group(msgspec.Struct, frozen=True):
    """Runs whose predictions are compared with each other."""

    name: str
    members: tuple[Point, ...]


class AgreementStudy(Study, Tagged, frozen=True, tag="agreement"):
    """Predictions of groups of runs on the test set.

    Attributes:
        groups: compared within; each makes an ensemble.
        reference: every member is compared with it too; None for no one.
    """

    groups: tuple[Group, ...]
    reference: Point | None = None

    @classmethod
    def of(
        cls, places: Sequence[Place], reference: Place | None = None, **_: Any
    ) -> AgreementStudy:
        """Make a group of the runs of each recipe."""
        recipes = [place.run.spec.recipe for place in places]
        named = sorted(zip(recipes, points_at(places), strict=True), key=lambda pair: pair[0])
        groups = tuple(
            Group(name, tuple(point for _, point in pairs))
            for name, pairs in itertools.groupby(named, key=lambda pair: pair[0])
        )
        return cls(groups, points_at([reference])[0] if reference else None)

    @property
    def checkpoints(self) -> tuple[Point, ...]:
        """All members of all groups, then the reference."""
        members = (point for group in self.groups for point in group.members)
        return (*members, *([self.reference] if self.reference else []))

    def measure(self, store: Store) -> Agreement:
        """Compare predictions on the whole test set."""
        networks, data = load_all(self, store)
        if len(networks) < 2:
            raise MeasureError(
                f"{networks[0].label} is alone: agreement and ensembles need at least two networks"
            )
        images, classes = data.test[:]
        logits = [predict(network.model, images) for network in networks]
        pairs, points = pairwise(logits), self.checkpoints
        apart = matrix(pairs.disagreement.tolist()), matrix(pairs.divergence.tolist())
        labels = tuple(network.label for network in networks)
        groups, place = [], 0
        for group in self.groups:
            indices = range(place, place := place + len(group.members))
            members = tuple(
                _member(labels[i], logits[i], classes, self._from_reference(apart, i))
                for i in indices
            )
            living = [logits[i] for i, m in zip(indices, members, strict=True) if not m.dead]
            together = ensemble_record(living, classes) if len(living) > 1 else None
            groups.append(GroupRecord(group.name, members, together))
        checkpoints = tuple(f"{point.run}@{point.step}" for point in points)
        return Agreement(tuple(groups), labels, checkpoints, *apart)

    def _from_reference(self, apart: tuple[Matrix, Matrix], index: int) -> tuple[Number, Number]:
        """Disagreement with the reference, and divergence from it; None from itself."""
        own, other = self.checkpoints[index], self.reference
        if other is None or (own.run, own.step) == (other.run, other.step):
            return None, None
        return apart[0][-1][index], apart[1][-1][index]


def _member(
    label: str, logits: Tensor, truth: Tensor, from_reference: tuple[Number, Number]
) -> Member:
    result = score(logits.double().softmax(1), truth)
    return Member(
        label=label,
        accuracy=rounded(result.accuracy),
        loss=rounded(result.loss),
        ece=rounded(result.ece),
        dead=result.accuracy < dead_below(logits.shape[1]),
        reference=from_reference[0],
        divergence=from_reference[1],
    )


def ensemble_record(logits: list[Tensor], truth: Tensor) -> Ensemble:
    """Score an ensemble; its gain is a mean over test examples, and so has a standard error."""
    mean = ensemble(logits)
    result = score(mean, truth)
    alone = torch.stack([member.argmax(1) == truth for member in logits]).double().mean(0)
    gains = 100 * ((mean.argmax(1) == truth).double() - alone)
    error = float(gains.std()) / math.sqrt(len(gains))
    values = (result.accuracy, result.loss, result.ece, float(gains.mean()), error)
    return Ensemble(len(logits), *map(rounded, values))


def dead_labels(results: Evidence) -> set[str]:
    """Labels of the members of all groups that died."""
    record = first(results, Agreement)
    groups = record.groups if record else ()
    return {member.label for group in groups for member in group.members if member.dead}


def blocks(record: Agreement) -> Iterator[tuple[GroupRecord, list[int]]]:
    """Each group with the places of its living members in the matrix."""
    place = 0
    for group in record.groups:
        indices = range(place, place := place + len(group.members))
        alive = [i for i, m in zip(indices, group.members, strict=True) if not m.dead]
        yield group, alive


def mean_between(record: Agreement, rows: Iterable[int], columns: Iterable[int]) -> float | None:
    """Mean disagreement of pairs, none of a network with itself."""
    pairs = itertools.product(rows, columns)
    one = record.checkpoints
    values = finite(record.disagreement[i][j] for i, j in pairs if one[i] != one[j])
    return statistics.fmean(values) if values else None


def within_groups(results: Evidence) -> str:
    """Mean disagreement within each group, least first."""
    record = first(results, Agreement)
    if record is None:
        return ""
    means, lost = [], 0
    for group, alive in blocks(record):
        mean = mean_between(record, alive, alive)
        lost += len(group.members) - len(alive)
        if mean is not None:
            means.append((mean, group_label(group.name)))
    if not means:
        return ""
    said = [f"{name} {100 * mean:.2f} %" for mean, name in sorted(means)]
    text = f"Share of test images on which two of a group disagree, least first: {listing(said)}."
    return text + f" {count(lost, 'dead run')} left out." * bool(lost)


def _draw(results: Evidence) -> Drawing | None:
    """Draw the matrix of the living runs, with the mean of each block in %."""
    record = first(results, Agreement)
    groups = [(group.name, alive) for group, alive in blocks(record) if alive] if record else []
    order = [i for _, alive in groups for i in alive]
    if record is None or len(order) < 2:
        return None
    table = 100 * np.array(record.disagreement, dtype=float)[np.ix_(order, order)]
    step = heatmap.round_step(float(np.nanmax(table)) / len(SCALE))
    with style.styled():
        figure = mpl.figure.Figure(figsize=(style.WIDTH, style.WIDTH))
        axes = figure.subplots()
        levels = np.clip(np.floor(table / step), 0, len(SCALE) - 1)
        ends = [0, *itertools.accumulate(len(alive) for _, alive in groups)]
        spans = list(zip(ends[:-1], ends[1:], groups, strict=True))
        for (a, b, (down, rows)), (c, d, (along, columns)) in itertools.product(spans, spans):
            mean = mean_between(record, rows, columns)
            two, value = f"{group_label(down)} and {group_label(along)}", 100 * (mean or 0)
            shades = heatmap.draw_shades(axes, levels[a:b, c:d], (c, a))
            mark_all(shades, (down, along), "" if mean is None else f"{two}: {value:.2f} %")
            if mean is not None:
                high = value / step >= ON_SCALE
                number = axes.text(
                    (c + d) / 2, (a + b) / 2, f"{value:.1f}", ha="center", va="center",
                    fontsize=9, color=CARD if high else INK, zorder=3,
                )  # fmt: skip
                mark(number, (down, along))
        names = [name for name, _ in groups]
        heatmap.name_blocks(axes, ends, [group_label(name) for name in names], names)
        bounds = step * np.arange(len(SCALE) + 1)
        bar = style.scale_bar(figure, axes, bounds, [f"{b:.3g}" for b in bounds], aspect=36)
        bar.set_label("disagreement, % of test images")
        return figure


def _data(results: Evidence) -> Table:
    record = first(results, Agreement)
    return record.pairs() if record else Table.of("pairs", [])


DISAGREEMENT = Figure(
    "disagreement",
    "Who disagrees with whom",
    "A cell is a pair of networks: the share of test images that they classify "
    "differently. The number in a block is its mean in %, a network and itself left out. "
    "Lottery, scratch and prune restart all come from one pruned network.",
    "predictions of several groups",
    _draw,
    _data,
    within_groups,
    evidence=True,
)

register_study(
    AgreementStudy,
    Agreement,
    probe="agreement",
    takes=(2, None),
    options=("reference",),
    version=2,
    order=6,
    figures=(DISAGREEMENT,),
)
