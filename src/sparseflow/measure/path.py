"""The loss along the straight line between two solutions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64
from torch import Tensor, nn

from sparseflow.core.chunks import Chunks, Scores
from sparseflow.core.errors import MeasureError
from sparseflow.measure.landscape import Landscape, mix
from sparseflow.measure.states import fitted

Row = Float64[np.ndarray, " points"]


@dataclass(frozen=True, eq=False)
class Path:
    """Loss at the weights (1 - α)·a + α·b, for α from before 0 (a) to past 1 (b).

    Attributes:
        alphas: the values of α, increasing; 0 and 1 are among them.
        losses: mean loss over the data at each.
        scores: whatever else the loss function gave, by name, at each.
    """

    alphas: Row
    losses: Row
    scores: dict[str, Row]

    @property
    def accuracies(self) -> Row:
        """Accuracy at each α.

        Raises:
            MeasureError: if the loss function gave none.
        """
        if "accuracy" not in self.scores:
            raise MeasureError(
                "the loss gave no 'accuracy'; pass loss_and_accuracy, or a loss that returns "
                "{'loss': ..., 'accuracy': ...}"
            )
        return self.scores["accuracy"]

    @property
    def barrier(self) -> float:
        """Loss barrier: max over α in [0, 1] of L(α) - [(1 - α)·L(0) + α·L(1)].

        It is 0 or more, 0 where the loss lies nowhere above the chord. The
        definition is that of Entezari et al. 2022 (arXiv 2110.06296); Frankle
        et al. 2020 (arXiv 1912.05671) subtract the mean of the two ends
        instead, which agrees where the ends are equal.
        """
        return self._rise(self.losses)

    @property
    def accuracy_barrier(self) -> float:
        """The same of the error: how far accuracy sags below its chord, in its own units.

        Raises:
            MeasureError: if the loss function gave no accuracy.
        """
        return self._rise(-self.accuracies)

    def _rise(self, values: Row) -> float:
        within = (self.alphas >= 0) & (self.alphas <= 1)
        alphas, between = self.alphas[within], values[within]
        chord = between[0] + alphas * (between[-1] - between[0])
        return max(float((between - chord)[1:-1].max(initial=0)), 0.0)


def interpolate(
    model: nn.Module,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    loss: Scores,
    data: Any,
    points: int = 29,
    *,
    span: tuple[float, float] = (-0.2, 1.2),
    batch_norm_data: Any = None,
    chunk: int | Chunks | None = None,
) -> Path:
    """Evaluate the loss along the straight line between two solutions.

    The paper takes 29 points from -0.2 to 1.2. The network is evaluated in eval
    mode; batch norm's running statistics are gathered again at every point, the
    ends included, so that the curve has no jump. Other floating-point buffers
    are interpolated, integer ones come from the nearer end. Weights that are
    zero in both stay zero. The model keeps its own weights, buffers and mode.

    For train and test curves call it twice, with ``batch_norm_data=train`` for
    the test data.

    Args:
        model: any module; only its architecture matters. A truly sparse one is
            evaluated in its dense form.
        a: the state at α = 0: every parameter by name, buffers where there are;
            of a dense or a truly sparse model, compared by position.
        b: the state at α = 1.
        loss: ``loss(model, batch) -> scalar``, or a mapping of named scalars
            with "loss" among them, such as :func:`loss_and_accuracy`; means
            over the batch.
        data: a batch or an iterable of batches, read once.
        points: how many values of α, evenly spaced over the span; 0 and 1 are
            added where the grid misses them.
        span: smallest and largest α.
        batch_norm_data: what batch-norm statistics are gathered on; ``data``
            by default.
        chunk: examples at a time, or :class:`Chunks`, as for :func:`gradient_flow`;
            500 where that suits the loss.

    Raises:
        MeasureError: if a state does not fit the model, the span does not
            cover [0, 1], or a loss along the path is not finite.

    Example:
        >>> import torch
        >>> model = nn.Linear(1, 1, bias=False)
        >>> def double_well(net, batch):
        ...     return (net(batch) ** 2 - 1).square().mean()
        >>> a, b = ({"weight": torch.tensor([[w]])} for w in (-1.0, 1.0))
        >>> round(interpolate(model, a, b, double_well, torch.ones(4, 1)).barrier, 6)
        1.0
    """
    model, states = fitted(model, {"a": a, "b": b})
    a, b = states.values()
    alphas = _grid(points, span)
    landscape = Landscape(model, loss, data, batch_norm_data=batch_norm_data, chunk=chunk)
    scores = [
        landscape.at(mix((a, b), (1 - alpha, alpha)), f"at α = {alpha:.6g} of the path")
        for alpha in alphas.tolist()
    ]
    rows = {name: np.array([values[name] for values in scores]) for name in scores[0]}
    return Path(alphas, rows.pop("loss"), rows)


def _grid(points: int, span: tuple[float, float]) -> Row:
    low, high = span
    if low > 0 or high < 1:
        raise MeasureError(f"span={span} must cover 0 and 1, where the two solutions are")
    if points < 3:
        raise MeasureError(f"points={points} must be at least 3, to see between the ends")
    step = (high - low) / (points - 1)
    grid = low + step * np.arange(points)
    # 0.2 + 4 * 0.05 and the like miss 0 and 1 by a rounding error.
    between = [x for x in grid if min(abs(x), abs(x - 1)) > 1e-9 * max(step, 1)]
    return np.array(sorted([*between, 0.0, 1.0]), dtype=np.float64)
