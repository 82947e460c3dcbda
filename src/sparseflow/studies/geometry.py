"""Studies of where solutions lie: lines, planes, distances, a map."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from sparseflow.core.errors import MeasureError
from sparseflow.measure.align import align
from sparseflow.measure.distance import distance, distances
from sparseflow.measure.landscape import loss_and_accuracy
from sparseflow.measure.mds import mds
from sparseflow.measure.path import interpolate
from sparseflow.measure.plane import plane
from sparseflow.runs import Store
from sparseflow.studies.figures import Distances, Line, Matrix, Number, Plane, rounded
from sparseflow.studies.load import examples, load_all
from sparseflow.studies.spec import DistanceStudy, LineStudy, PlaneStudy


def line(study: LineStudy, store: Store) -> Line:
    """Interpolate, on the training examples and on the test set."""
    (start, end), data = load_all(study, store)
    a, b = start.state, end.state
    if study.aligned:
        a = dict(align(end.model, b, a).state)
    train = examples(data, study.examples)
    on_train = interpolate(end.model, a, b, loss_and_accuracy, train, study.points)
    test = data.test[:]
    on_test = interpolate(
        end.model, a, b, loss_and_accuracy, test, study.points, batch_norm_data=train
    )
    names = dict(end.model.named_parameters())
    return Line(
        labels=(start.label, end.label),
        aligned=study.aligned,
        distance=rounded(distance(a, b, only=names).l2),
        alphas=_row(on_train.alphas),
        train_loss=_row(on_train.losses),
        train_accuracy=_row(on_train.accuracies),
        test_loss=_row(on_test.losses),
        test_accuracy=_row(on_test.accuracies),
        barrier=rounded(on_train.barrier),
        error_barrier=rounded(on_train.accuracy_barrier),
        test_barrier=rounded(on_test.barrier),
    )


def plane_through(study: PlaneStudy, store: Store) -> Plane:
    """Evaluate the training loss over the plane through three networks."""
    corners, data = load_all(study, store)
    a, b, c = (network.state for network in corners)
    found = plane(
        corners[0].model,
        a,
        b,
        c,
        loss_and_accuracy,
        examples(data, study.examples),
        points=(study.points, study.points),
    )
    return Plane(
        labels=(corners[0].label, corners[1].label, corners[2].label),
        positions=_matrix(found.positions),
        x=_row(found.x),
        y=_row(found.y),
        losses=_matrix(found.losses),
    )


def all_distances(study: DistanceStudy, store: Store) -> Distances:
    """Measure all distances between networks, and draw their map."""
    networks, _ = load_all(study, store)
    labels = [network.label for network in networks]
    if len(set(labels)) < len(labels):
        raise MeasureError(f"two checkpoints have one label among {', '.join(labels)}")
    found = distances(
        {n.label: n.state for n in networks},
        {n.label: n.masks for n in networks},
        only=dict(networks[0].model.named_parameters()),
    )
    assert found.hamming is not None  # masks were given
    assert found.jaccard is not None
    placed = mds(found) if len(networks) > 2 else None
    return Distances(
        labels=tuple(labels),
        l2=_matrix(found.l2),
        cosine=_matrix(found.cosine),
        hamming=_matrix(found.hamming),
        jaccard=_matrix(found.jaccard),
        places=_matrix(placed.points) if placed else (),
        stress=rounded(placed.stress) if placed else None,
    )


def _row(values: Iterable[float]) -> tuple[Number, ...]:
    return tuple(rounded(float(value)) for value in values)


def _matrix(values: np.ndarray) -> Matrix:
    return tuple(_row(row) for row in values)
