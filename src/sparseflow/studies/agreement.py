"""Studies of what solutions predict: agreement within groups, and their ensembles."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sparseflow.core.errors import MeasureError
from sparseflow.measure.agreement import Agreement as Pairs
from sparseflow.measure.agreement import ensemble, pairwise, predict, score
from sparseflow.runs import Store
from sparseflow.studies.figures import (
    Agreement,
    Ensemble,
    GroupFigures,
    Matrix,
    Member,
    Number,
    dead_below,
    rounded,
)
from sparseflow.studies.load import load_all
from sparseflow.studies.spec import AgreementStudy, Point, points_of


def agreement(study: AgreementStudy, store: Store) -> Agreement:
    """Compare predictions on the whole test set.

    Raises:
        MeasureError: if there is only one network.
    """
    networks, data = load_all(study, store)
    if len(networks) < 2:
        raise MeasureError(
            f"{networks[0].label} is alone: agreement and ensembles need at least two networks"
        )
    images, classes = data.test[:]
    logits = [predict(network.model, images) for network in networks]
    pairs = pairwise(logits)
    points = points_of(study)
    labels = tuple(network.label for network in networks)
    last = len(points) - 1 if study.reference else None
    groups, place = [], 0
    for group in study.groups:
        indices = range(place, place := place + len(group.members))
        members = tuple(
            _member(labels[i], logits[i], classes, _beside(pairs, points, i, last)) for i in indices
        )
        living = [logits[i] for i, m in zip(indices, members, strict=True) if not m.dead]
        found = _ensemble(living, classes) if len(living) > 1 else None
        groups.append(GroupFigures(group.name, members, found))
    return Agreement(
        groups=tuple(groups),
        labels=labels,
        checkpoints=tuple(f"{point.run}@{point.step}" for point in points),
        disagreement=_matrix(pairs.disagreement),
        divergence=_matrix(pairs.divergence),
    )


def _beside(
    pairs: Pairs, points: Sequence[Point], index: int, last: int | None
) -> tuple[Number, Number]:
    """Disagreement with the reference, and divergence from it; None from itself."""
    own, other = points[index], None if last is None else points[last]
    if other is None or (own.run, own.step) == (other.run, other.step):
        return None, None
    found = pairs.disagreement[last, index], pairs.divergence[last, index]
    return rounded(float(found[0])), rounded(float(found[1]))


def _member(label: str, logits: Tensor, truth: Tensor, beside: tuple[Number, Number]) -> Member:
    found = score(logits.double().softmax(1), truth)
    return Member(
        label=label,
        accuracy=rounded(found.accuracy),
        loss=rounded(found.loss),
        ece=rounded(found.ece),
        dead=found.accuracy < dead_below(logits.shape[1]),
        reference=beside[0],
        divergence=beside[1],
    )


def _ensemble(logits: list[Tensor], truth: Tensor) -> Ensemble:
    """Score an ensemble; its gain is a mean over test examples, and so has a standard error."""
    mean = ensemble(logits)
    found = score(mean, truth)
    alone = torch.stack([member.argmax(1) == truth for member in logits]).double().mean(0)
    gains = 100 * ((mean.argmax(1) == truth).double() - alone)
    return Ensemble(
        size=len(logits),
        accuracy=rounded(found.accuracy),
        loss=rounded(found.loss),
        ece=rounded(found.ece),
        gain=rounded(float(gains.mean())),
        error=rounded(float(gains.std()) / math.sqrt(len(gains))),
    )


def _matrix(values: Tensor) -> Matrix:
    return tuple(tuple(rounded(float(v)) for v in row) for row in values)
