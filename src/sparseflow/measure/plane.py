"""The loss over the plane through three solutions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor, nn

from sparseflow.core.chunks import Chunks, Scores
from sparseflow.core.errors import MeasureError
from sparseflow.measure.landscape import Landscape, mix
from sparseflow.measure.states import check_finite, fitted, real

Grid = Float64[np.ndarray, "rows columns"]


@dataclass(frozen=True, eq=False)
class Plane:
    """Loss over the plane through three solutions, in units of weight distance.

    Attributes:
        x: coordinates of the columns, along b - a.
        y: coordinates of the rows, along the part of c - a orthogonal to it.
        losses: mean loss over the data at each point, (len(y), len(x)).
        scores: whatever else the loss function gave, by name, of the same shape.
        positions: (x, y) of a, b and c, (3, 2); a is the origin. Their
            distances are those of the solutions.
    """

    x: Float64[np.ndarray, " columns"]
    y: Float64[np.ndarray, " rows"]
    losses: Grid
    scores: dict[str, Grid]
    positions: Float64[np.ndarray, "3 2"]


def plane(
    model: nn.Module,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    c: Mapping[str, Tensor],
    loss: Scores,
    data: Any,
    *,
    points: tuple[int, int] = (25, 25),
    margin: float = 0.2,
    batch_norm_data: Any = None,
    chunk: int | Chunks | None = None,
) -> Plane:
    """Evaluate the loss over the plane through three solutions.

    As in Garipov et al. 2018 (arXiv 1802.10026): with u = (b - a) / ‖b - a‖ and
    v the unit vector of c - a less its part along u, the point (x, y) has the
    weights a + x·u + y·v. Distances are over the parameters alone.
    Batch norm and buffers are treated as in :func:`interpolate`.

    Args:
        model: any module; only its architecture matters. A truly sparse one is
            evaluated in its dense form.
        a: first solution, the origin.
        b: second solution, on the x axis.
        c: third solution, above it.
        loss: as for :func:`interpolate`.
        data: a batch or an iterable of batches, read once.
        points: grid points along x and y.
        margin: how far the grid goes beyond the three on each side, as a share
            of their extent.
        batch_norm_data: as for :func:`interpolate`.
        chunk: examples at a time, or :class:`Chunks`, as for :func:`gradient_flow`;
            500 where that suits the loss.

    Raises:
        MeasureError: if a state does not fit the model, the three lie on one
            line, or a loss is not finite.

    Example:
        >>> a, b, c = ({"weight": torch.tensor([w])} for w in ([1.0, 1.0], [4.0, 1.0], [1.0, 5.0]))
        >>> def square(net, batch):
        ...     return net(batch).square().sum(1).mean()
        >>> model = nn.Linear(2, 1, bias=False)
        >>> surface = plane(model, a, b, c, square, torch.eye(2), points=(3, 3), margin=0.0)
        >>> surface.positions.tolist(), surface.losses[0].tolist()
        ([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]], [1.0, 3.625, 8.5])
    """
    model, states = fitted(model, {"a": a, "b": b, "c": c})
    a, b, c = states.values()
    if min(points) < 2 or margin < 0:
        raise MeasureError(f"points={points} must be 2 or more, margin={margin} not negative")
    positions = _positions(a, b, c, [name for name, _ in model.named_parameters()])
    low, high = positions.min(0), positions.max(0)
    edge = margin * (high - low)
    x, y = (np.linspace(low[i] - edge[i], high[i] + edge[i], points[i]) for i in (0, 1))
    landscape = Landscape(model, loss, data, batch_norm_data=batch_norm_data, chunk=chunk)
    (_, _), (bx, _), (cx, cy) = positions.tolist()

    def at(px: float, py: float) -> dict[str, float]:
        t = py / cy
        s = (px - t * cx) / bx
        state = mix((a, b, c), (1 - s - t, s, t))
        return landscape.at(state, f"at x = {px:.6g}, y = {py:.6g} of the plane")

    values = [[at(px, py) for px in x.tolist()] for py in y.tolist()]
    grids = {n: np.array([[point[n] for point in row] for row in values]) for n in values[0][0]}
    return Plane(x, y, grids.pop("loss"), grids, positions)


@torch.no_grad()
def _positions(
    a: Mapping[str, Tensor], b: Mapping[str, Tensor], c: Mapping[str, Tensor], names: list[str]
) -> Float64[np.ndarray, "3 2"]:
    """Gram-Schmidt on b - a and c - a, in float64."""

    def minus(state: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([(real(state[n]) - real(a[n])).flatten() for n in names])

    check_finite({"a": a, "b": b, "c": c}, names)
    first, second = minus(b), minus(c)
    pairs = {"a and b": first, "a and c": second, "b and c": second - first}
    for pair, difference in pairs.items():
        if not float(difference.norm()):
            raise MeasureError(f"{pair} are one and the same point: three make a plane")
    u = first / first.norm()
    along = second @ u
    height = (second - along * u).norm()
    # Rounding of float32 weights alone lifts a point off the line by about 1e-7.
    if float(height) <= 1e-6 * float(max(first.norm(), second.norm())):
        raise MeasureError(
            f"a, b and c lie on one line (c is {float(height):.3g} off it): they make no plane"
        )
    return np.array([[0, 0], [float(first.norm()), 0], [float(along), float(height)]], np.float64)
