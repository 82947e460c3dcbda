"""How alike networks decide: disagreement, divergence, ensembles, calibration.

Everything is computed from predictions on one fixed data set, in float64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from sparseflow.core.errors import MeasureError
from sparseflow.core.functional import logits_of, undisturbed

ROUNDING = 1e-4
"""How far a row of probabilities may be from the sum 1."""

Predictions = Mapping[str, Tensor] | Sequence[Tensor] | Tensor
"""Logits [examples, classes] of each run: by name, in a row, or stacked along a first axis."""


@dataclass(frozen=True)
class Score:
    """How well one network, or an ensemble, predicts.

    Attributes:
        accuracy: in %.
        loss: mean negative log-likelihood of the true class, in nats; infinite
            if a true class has probability 0.
        ece: expected calibration error, between 0 and 1.
    """

    accuracy: float
    loss: float
    ece: float


@dataclass(frozen=True, eq=False)
class Agreement:
    """Every run of a set against every other.

    Attributes:
        labels: names of the runs, in the order of rows and columns.
        disagreement: share of examples that two runs classify differently;
            symmetric, zero on the diagonal.
        divergence: KL(row ‖ column) in nats, mean over examples; not symmetric,
            zero on the diagonal.
    """

    labels: tuple[str, ...]
    disagreement: Float[Tensor, "runs runs"]
    divergence: Float[Tensor, "runs runs"]


def disagreement(p: Tensor, q: Tensor) -> float:
    """Share of examples that two networks classify differently (Evci et al. 2022).

    Args:
        p: predicted classes, whole numbers [examples], or scores
            [examples, classes]: logits or probabilities, of which the largest
            counts (the first of equal ones).
        q: the same of the other network; one may be classes, the other scores.

    Returns:
        Between 0 and 1.

    Raises:
        MeasureError: if the numbers of examples or classes differ, or a score
            is not finite.

    Example:
        >>> disagreement(torch.tensor([0, 1, 2, 1]), torch.tensor([0, 1, 2, 2]))
        0.25
    """
    first, second = _classes(p, "p"), _classes(q, "q")
    if p.ndim == q.ndim:
        _same_shape({"p": p, "q": q})
    elif len(first) != len(second):
        raise MeasureError(_different(f"p has {len(first)} examples", f"q {len(second)}"))
    return float((first != second).double().mean())


def divergence(p: Tensor, q: Tensor) -> float:
    """Mean over examples of KL(p ‖ q) = Σ_c p_c (log p_c − log q_c), in nats.

    p and q are the softmax outputs that belong to the logits. Not symmetric:
    large where q rules out what p holds for likely.

    Args:
        p: logits [examples, classes] of the network that is averaged over.
        q: logits of the other one.

    Raises:
        MeasureError: if the shapes differ or a logit is not finite.

    Example:
        >>> even, sure = torch.zeros(1, 2), torch.tensor([[0.0, 3.0]]).log1p()
        >>> f"{divergence(even, sure):.4f} {divergence(sure, even):.4f}"
        '0.2231 0.1927'
    """
    logs = {name: x.log_softmax(1) for name, x in _members({"p": p, "q": q}).items()}
    return _kl(logs["p"], logs["q"])


def ensemble(logits: Predictions) -> Float[Tensor, "examples classes"]:
    """Probabilities of an ensemble: the mean of its members' softmax outputs.

    Args:
        logits: of two or more members, each [examples, classes].

    Returns:
        Probabilities in float64; :func:`score` judges them.

    Raises:
        MeasureError: for fewer than two members, members of different shapes,
            or a logit that is not finite.

    Example:
        >>> members = [torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 3.0]]).log1p()]
        >>> ensemble(members)
        tensor([[0.3500, 0.6500]], dtype=torch.float64)
    """
    members = list(_members(logits).values())
    total = torch.zeros_like(members[0])
    for member in members:
        total += member.softmax(1)
    return total / len(members)


def calibration(probabilities: Tensor, labels: Tensor, *, bins: int = 15) -> float:
    """Expected calibration error (Guo et al. 2017).

    Examples are put in bins of equal width by their confidence, the largest
    probability; bin m holds ((m − 1)/bins, m/bins]. The error is the mean over
    examples of |accuracy − mean confidence| of their bin.

    Args:
        probabilities: [examples, classes], rows that sum to 1: not logits.
        labels: true classes, whole numbers [examples].
        bins: number of bins.

    Returns:
        Between 0 and 1.

    Raises:
        MeasureError: if a row is not a distribution, a label is not a class, or
            ``bins`` is less than 1.

    Example:
        >>> p = torch.tensor([[0.5, 0.5], [0.25, 0.75]])
        >>> calibration(p, torch.tensor([0, 1]))
        0.375
    """
    if bins < 1:
        raise MeasureError(f"bins is {bins}; at least 1 is needed")
    values, truth = _judged(probabilities, labels)
    confidence, predicted = values.max(1)
    gap = (predicted == truth).double() - confidence
    edges = torch.arange(1, bins, dtype=torch.float64, device=gap.device) / bins
    index = torch.bucketize(confidence, edges)
    per_bin = torch.zeros(bins, dtype=torch.float64, device=gap.device).index_add_(0, index, gap)
    return float(per_bin.abs().sum() / len(gap))


def score(probabilities: Tensor, labels: Tensor) -> Score:
    """Accuracy, loss and calibration of one network or of an ensemble.

    Args:
        probabilities: [examples, classes], rows that sum to 1: from
            :func:`ensemble`, or ``logits.softmax(1)`` of a single network.
        labels: true classes, whole numbers [examples].

    Raises:
        MeasureError: if a row is not a distribution or a label is not a class.

    Example:
        >>> score(torch.tensor([[0.5, 0.5], [0.5, 0.5]]), torch.tensor([0, 1])).accuracy
        50.0
    """
    values, truth = _judged(probabilities, labels)
    right = values.argmax(1) == truth
    loss = functional.nll_loss(values.log(), truth)
    accuracy = 100 * int(right.sum()) / len(right)
    return Score(accuracy, float(loss), calibration(values, truth))


def pairwise(predictions: Predictions) -> Agreement:
    """Disagreement and divergence of every pair of runs.

    Args:
        predictions: logits [examples, classes] of two or more runs on one data
            set; runs without names are called 0, 1, …

    Raises:
        MeasureError: for fewer than two runs, runs of different shapes, or a
            logit that is not finite.

    Example:
        >>> x = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
        >>> agreement = pairwise({"pruned": x, "ticket": 2 * x, "scratch": -x})
        >>> agreement.labels, agreement.disagreement[0].tolist()
        (('pruned', 'ticket', 'scratch'), [0.0, 0.0, 1.0])
    """
    members = _members(predictions)
    classes = [member.argmax(1) for member in members.values()]
    logs = [member.log_softmax(1) for member in members.values()]
    differ = torch.zeros(len(logs), len(logs), dtype=torch.float64)
    diverge = torch.zeros_like(differ)
    for i, j in combinations(range(len(logs)), 2):
        differ[i, j] = differ[j, i] = (classes[i] != classes[j]).double().mean()
        diverge[i, j], diverge[j, i] = _kl(logs[i], logs[j]), _kl(logs[j], logs[i])
    return Agreement(tuple(members), differ, diverge)


@torch.no_grad()
def predict(model: nn.Module, inputs: Tensor, *, chunk: int = 1000) -> Tensor:
    """Outputs of a model on a data set, in evaluation mode.

    The model is as it was afterwards: modes, buffers and random streams.

    Args:
        model: a module that maps ``inputs`` to one tensor, or to several with
            ``logits`` among them.
        inputs: [examples, …].
        chunk: examples at a time.

    Returns:
        What the model gives, joined along the examples.

    Raises:
        MeasureError: if the model gives neither.

    Example:
        >>> predict(nn.Linear(3, 2), torch.ones(5, 3)).shape
        torch.Size([5, 2])
    """
    with undisturbed(model):
        model.eval()
        return torch.cat([logits_of(model(part)) for part in inputs.split(chunk)])


def _kl(p: Float[Tensor, "examples classes"], q: Float[Tensor, "examples classes"]) -> float:
    """KL from log-probabilities; rounding may leave −1e-17 where it is zero."""
    return max(float((p.exp() * (p - q)).sum(1).mean()), 0.0)


def _members(predictions: Predictions) -> dict[str, Float[Tensor, "examples classes"]]:
    """Name the runs, check that they belong together, and widen them to float64."""
    if isinstance(predictions, Mapping):
        named = dict(predictions)
    else:
        named = {str(i): member for i, member in enumerate(predictions)}
    if len(named) < 2:
        count = f"{len(named)} member" + "s" * (not named)
        raise MeasureError(f"got {count}: an ensemble or a comparison takes two or more")
    for name, member in named.items():
        _check_scores(member, name)
    _same_shape(named)
    device = next(iter(named.values())).device
    return {name: member.detach().to(device).double() for name, member in named.items()}


def _check_scores(scores: Tensor, name: str) -> None:
    if scores.ndim != 2 or not scores.is_floating_point() or not scores.numel():
        shape = list(scores.shape)
        raise MeasureError(
            f"{name!r} is {scores.dtype} {shape}; scores are floating point [examples, classes]"
        )
    if not scores.isfinite().all():
        row = int((~scores.isfinite()).any(1).nonzero()[0])
        raise MeasureError(f"{name!r} is not finite at example {row}: {scores[row].tolist()}")


def _same_shape(named: Mapping[str, Tensor]) -> None:
    (first, a), *others = named.items()
    for name, b in others:
        if a.shape != b.shape:
            words = [f"{n!r} is {list(x.shape)}" for n, x in ((first, a), (name, b))]
            raise MeasureError(_different(*words))


def _different(one: str, other: str) -> str:
    return f"{one}, {other}: predictions of different data sets?"


def _classes(p: Tensor, name: str) -> Int[Tensor, " examples"]:
    if p.ndim == 1 and len(p) and not p.is_floating_point() and not p.is_complex():
        return p.detach().cpu().long()
    _check_scores(p, name)
    return p.detach().argmax(1).cpu()


def _judged(
    probabilities: Tensor, labels: Tensor
) -> tuple[Float[Tensor, "examples classes"], Int[Tensor, " examples"]]:
    """Check distributions and labels; widen both."""
    _check_scores(probabilities, "probabilities")
    values = probabilities.detach().double()
    sums = values.sum(1)
    wrong = (values < 0).any(1) | ((sums - 1).abs() > ROUNDING)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise MeasureError(
            f"example {row} has least {float(values[row].min()):.4g} and sum "
            f"{float(sums[row]):.4g}; probabilities are not negative and sum to 1 (logits?)"
        )
    if labels.is_floating_point() or labels.ndim != 1:
        kind = f"{labels.dtype} {list(labels.shape)}"
        raise MeasureError(f"labels are {kind}; they are whole numbers [examples]")
    if len(labels) != len(values):
        raise MeasureError(_different(f"{len(values)} predictions", f"{len(labels)} labels"))
    truth = labels.detach().to(values.device).long()
    low, high, count = int(truth.min()), int(truth.max()), values.shape[1]
    if low < 0 or high >= count:
        raise MeasureError(f"labels run from {low} to {high}; classes are 0 to {count - 1}")
    return values, truth
