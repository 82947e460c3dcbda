"""Lanczos iterations on several start vectors at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparseflow.core.errors import MeasureError
from sparseflow.core.random import generator
from sparseflow.measure.operators import Curvature

Operator = Curvature | Tensor
"""An operator of sparseflow, or a symmetric matrix."""


def rows_of(operator: Operator) -> int:
    """Number of rows.

    Raises:
        MeasureError: for a tensor that is not a symmetric floating matrix.
    """
    if isinstance(operator, Tensor):
        square = (
            operator.ndim == 2
            and operator.shape[0] == operator.shape[1]
            and operator.is_floating_point()
        )
        if not square or not torch.allclose(operator, operator.T):
            raise MeasureError(
                f"a tensor of shape {tuple(operator.shape)} and type {operator.dtype} is not an "
                "operator: it should be a symmetric floating matrix"
            )
    return operator.shape[0]


def multiply(operator: Operator, v: Float[Tensor, " n *k"]) -> Float[Tensor, " n *k"]:
    """H @ v with sums in float64."""
    return (operator.double() if isinstance(operator, Tensor) else operator) @ v


def dense(operator: Operator) -> Float[Tensor, " n n"]:
    """The whole matrix in float64."""
    return (operator if isinstance(operator, Tensor) else operator.dense()).double()


def signs(n: int, probes: int, seed: int, stream: str) -> Float[Tensor, " n probes"]:
    """Rademacher vectors: every entry is ±1; each probe has a stream of its own."""
    drawn = [
        torch.randint(2, (n,), generator=generator(seed, stream, "probe", index))
        for index in range(probes)
    ]
    return 2.0 * torch.stack(drawn, 1).double() - 1


def tridiagonal(diagonal: Float[Tensor, " m"], off_diagonal: Float[Tensor, " n"]) -> Tensor:
    """The symmetric matrix with these entries on its diagonal and next to it."""
    return torch.diag(diagonal) + torch.diag(off_diagonal, 1) + torch.diag(off_diagonal, -1)


@dataclass(frozen=True, eq=False)
class Krylov:
    """Q T Qᵀ ≈ H on the space of one start vector after m steps.

    Attributes:
        basis: rows are the orthonormal Lanczos vectors, the start first.
        diagonal: of T.
        off_diagonal: of T, next to its diagonal.
        rest: what couples the space to the remaining one; 0 if it is invariant.
    """

    basis: Float[Tensor, " m n"]
    diagonal: Float[Tensor, " m"]
    off_diagonal: Float[Tensor, " m-1"]
    rest: float

    @property
    def tridiagonal(self) -> Float[Tensor, " m m"]:
        """T."""
        return tridiagonal(self.diagonal, self.off_diagonal)


def lanczos(operator: Operator, starts: Float[Tensor, " n probes"], steps: int) -> list[Krylov]:
    """Run Lanczos from every column of ``starts``, one block product a step.

    Each new vector is made orthogonal to all earlier ones, twice. A run ends
    early when its space is invariant up to the rounding of the operator: T is
    then exact there.
    """
    n, probes = starts.shape
    steps = min(steps, n)
    basis = starts.new_zeros(probes, steps, n)
    diagonal, off = starts.new_zeros(probes, steps), starts.new_zeros(probes, steps)
    length, alive = [steps] * probes, torch.ones(probes, dtype=torch.bool)
    # A coupling below this share of the operator's norm counts as none.
    rounding, scale = 10 * torch.finfo(operator.dtype).eps, 0.0
    q = starts / starts.norm(dim=0)
    for j in range(steps):
        basis[:, j] = q.T
        w = multiply(operator, q).T
        diagonal[:, j] = (basis[:, j] * w).sum(1)
        scale = max(scale, float(w.norm(dim=1).max()))
        w = _orthogonal(w, basis[:, : j + 1])
        norm = w.norm(dim=1)
        going = alive & (norm > rounding * scale).cpu() & (j + 1 < n)
        for probe in (alive & ~going).nonzero().flatten().tolist():
            length[probe] = j + 1
        alive = going
        if not bool(alive.any()):
            break
        here = alive.to(norm.device)
        off[:, j] = norm * here
        q = (w / norm[:, None]).where(here[:, None], 0).T
    return [
        Krylov(basis[p, :m], diagonal[p, :m], off[p, : m - 1], float(off[p, m - 1]))
        for p, m in enumerate(length)
    ]


def _orthogonal(w: Tensor, basis: Tensor) -> Tensor:
    """Take from each vector what lies in the span of the earlier ones, twice."""
    for _ in range(2):
        w = w - (basis.mT @ (basis @ w[..., None]))[..., 0]
    return w
