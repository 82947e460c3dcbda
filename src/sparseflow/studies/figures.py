"""What studies find: small records of rounded numbers, as the store and the report keep them."""

from __future__ import annotations

import math

import msgspec

Number = float | None
"""A figure rounded to five significant digits; None where it is not finite."""

Matrix = tuple[tuple[Number, ...], ...]


def dead_below(classes: int) -> float:
    """Test accuracy in % under which a run counts as dead: twice that of guessing.

    >>> dead_below(10), dead_below(1000)
    (20.0, 0.2)
    """
    return 200 / classes


def rounded(value: float) -> Number:
    """Round to five significant digits; None if not finite.

    >>> rounded(0.123456789), rounded(float("nan"))
    (0.12346, None)
    """
    return float(f"{value:.5g}") if math.isfinite(value) else None


class _Figures(msgspec.Struct, frozen=True, tag_field="kind"):
    """Base of what a study finds."""


class Spectrum(_Figures, frozen=True, tag="spectrum"):
    """Hessian spectrum over the active parameters.

    Attributes:
        label: the network, see :func:`sparseflow.studies.spec.label_of`; empty in a trial.
        parameters: active parameters, the number of eigenvalues.
        examples: that the loss is over.
        loss: mean training loss on them.
        norm: L2 norm of its gradient over the active parameters.
        largest: largest eigenvalue.
        smallest: smallest eigenvalue.
        negative: share of eigenvalues below -10⁻³ times the largest.
        low: lower end of its interval; equal to it if exact.
        high: upper end.
        exact: whether every eigenvalue was computed.
        edges: of the histogram's bins, increasing, even in the arsinh of λ.
        counts: (expected) number of eigenvalues in each bin.
    """

    label: str
    parameters: int
    examples: int
    loss: Number
    norm: Number
    largest: Number
    smallest: Number
    negative: Number
    low: Number
    high: Number
    exact: bool
    edges: tuple[Number, ...]
    counts: tuple[Number, ...]


class Trial(msgspec.Struct, frozen=True):
    """One network after one mask update.

    Attributes:
        rule: that made it, one of ``RULES``.
        draw: number of the draw; 0 for rules that draw nothing.
        churn: share of the active weights that changed.
        negative: number of eigenvalues below -10⁻³ times the largest one *before* the
            update; the spectrum's own share has the moving threshold.
        spectrum: with loss and gradient norm, just after the update.
    """

    rule: str
    draw: int
    churn: Number
    negative: int
    spectrum: Spectrum


class Updates(_Figures, frozen=True, tag="update"):
    """One network before an update, and after it by each rule.

    Attributes:
        label: the network.
        step: of its training.
        fraction: of active weights dropped.
        before: the network itself.
        after: every trial.
    """

    label: str
    step: int
    fraction: Number
    before: Spectrum
    after: tuple[Trial, ...]


class Line(_Figures, frozen=True, tag="line"):
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
    alphas: tuple[Number, ...]
    train_loss: tuple[Number, ...]
    train_accuracy: tuple[Number, ...]
    test_loss: tuple[Number, ...]
    test_accuracy: tuple[Number, ...]
    barrier: Number
    error_barrier: Number
    test_barrier: Number


class Plane(_Figures, frozen=True, tag="plane"):
    """Training loss over the plane through three checkpoints.

    Attributes:
        labels: of the three.
        positions: their coordinates (x, y), in units of L2 distance.
        x: coordinates of the columns.
        y: coordinates of the rows.
        losses: rows by y, columns by x.
    """

    labels: tuple[str, str, str]
    positions: Matrix
    x: tuple[Number, ...]
    y: tuple[Number, ...]
    losses: Matrix


class Distances(_Figures, frozen=True, tag="distance"):
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


class GroupFigures(msgspec.Struct, frozen=True):
    """One group.

    Attributes:
        name: of the group.
        members: all runs.
        ensemble: of the living ones; None for fewer than two.
    """

    name: str
    members: tuple[Member, ...]
    ensemble: Ensemble | None


class Agreement(_Figures, frozen=True, tag="agreement"):
    """Predictions of groups of runs.

    Attributes:
        groups: in the order asked for.
        labels: every member of every group in turn, then the reference.
        checkpoints: run and step of each: one may be a member of two groups.
        disagreement: between all of them.
        divergence: KL(row ‖ column) in nats.
    """

    groups: tuple[GroupFigures, ...]
    labels: tuple[str, ...]
    checkpoints: tuple[str, ...]
    disagreement: Matrix
    divergence: Matrix


Figures = Spectrum | Updates | Line | Plane | Distances | Agreement
