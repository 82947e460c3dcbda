"""Eigenvalues of a symmetric operator: extreme ones, all of them, their density, their sum.

Everything here takes an operator of :func:`sparseflow.hessian` or
:func:`sparseflow.gauss_newton`, or a symmetric matrix as a tensor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sparseflow.core.errors import MeasureError
from sparseflow.core.random import generator
from sparseflow.measure.lanczos import Operator, dense, growing, multiply, rows_of, signs

NEGATIVE = 1e-3
"""An eigenvalue counts as negative below −NEGATIVE · λ_max."""

LIMIT = 10_000
SMALL = 64
STEPS = 500
CONFIRM = 10


@dataclass(frozen=True, eq=False)
class Eigenvalues:
    """Some eigenvalues with their vectors.

    Attributes:
        values: largest first, float64.
        residuals: ‖Hv − λv‖ / max|λ| of each; an eigenvalue of H lies within
            ``residual · max|λ|`` of the value.
        vectors: unit eigenvectors as columns, in the same order.
    """

    values: Float[Tensor, " k"]
    residuals: Float[Tensor, " k"]
    vectors: Float[Tensor, " n k"]


def eigenvalues(
    operator: Operator,
    k: int = 1,
    which: Literal["LA", "SA", "LM"] = "LA",
    *,
    tol: float = 1e-4,
    maxiter: int = STEPS,
    seed: int = 0,
) -> Eigenvalues:
    """Compute k extreme eigenvalues by Lanczos iterations from one random vector.

    The basis is kept whole and orthogonal, so that residuals are known without
    further products and mean the same for every eigenvalue; it takes memory
    for ``steps · n`` numbers. Because a start vector may by chance hide an
    eigenvalue for a while, the result has to stand for ten more steps. An
    eigenvalue that occurs several times is found as often where the space of
    the start vector ends; else perhaps once. Operators of up to 64 rows, and
    ``k`` of half of the rows or more, are solved whole.

    Args:
        operator: what :func:`sparseflow.hessian` gives, or a symmetric matrix.
        k: how many.
        which: ``LA`` largest, ``SA`` smallest, ``LM`` largest by magnitude.
        tol: residual to reach, ‖Hv − λv‖ ≤ tol · max|λ|. The error of λ is
            smaller still, about the square of it over the gap.
        maxiter: steps at most; each is one product.
        seed: of the start vector.

    Raises:
        MeasureError: if ``k`` or ``which`` is impossible, or the iteration does
            not converge: it says how far it came.

    Example:
        >>> eigenvalues(torch.diag(torch.tensor([3.0, -1.0, 2.0])), 2).values
        tensor([3., 2.], dtype=torch.float64)
    """
    n = rows_of(operator)
    _check_request(operator, k, which, tol)
    if n <= SMALL or 2 * k >= n:
        values, vectors = torch.linalg.eigh(dense(operator))
        chosen = _wanted(values, which)[:k]
        errors = (
            multiply(operator, vectors[:, chosen]) - values[chosen] * vectors[:, chosen]
        ).norm(dim=0)
        return _sorted(values, chosen, errors, vectors[:, chosen])
    good, worst, before, since = 0, math.inf, None, 0
    for space in growing(operator, min(maxiter, n), generator(seed, "eigenvalues", "start")):
        values, vectors = torch.linalg.eigh(space.tridiagonal)
        chosen = _wanted(values, which)[:k]
        errors = space.rest * vectors[-1, chosen].abs() + space.dropped
        scale = float(values.abs().max())
        good, worst = int((errors <= tol * scale).sum()), float(errors.max()) / (scale or 1.0)
        steps, found = len(values), values[chosen]
        if good < k or before is None or float((found - before).abs().max()) > 2 * tol * scale:
            before, since = (found, steps) if good == k else (None, 0)
        settled = steps - since >= CONFIRM if not space.ends else space.ends >= k
        if good == k and (settled or steps == n):
            return _sorted(values, chosen, errors, space.basis.T @ vectors[:, chosen])
    raise MeasureError(
        f"Lanczos did not converge in {maxiter} steps: {good} of {k} eigenvalues reached a "
        f"residual of {tol:g} · max|λ|, the worst has {worst:.1e}; raise maxiter or tol"
    )


def _check_request(operator: Operator, k: int, which: str, tol: float) -> None:
    n, rounding = operator.shape[0], torch.finfo(operator.dtype).eps
    if which not in ("LA", "SA", "LM"):
        raise MeasureError(f"which is {which!r}; it should be 'LA', 'SA' or 'LM'")
    if not 1 <= k <= n:
        raise MeasureError(f"k is {k}; an operator of {n} rows has 1 to {n} eigenvalues")
    if tol < rounding:
        raise MeasureError(
            f"tol is {tol:g}; products in {operator.dtype} are right to {rounding:.1e}: raise "
            "tol, or compute in float64"
        )


def _wanted(values: Tensor, which: str) -> Tensor:
    """Indices from the most wanted eigenvalue on."""
    return {"LA": -values, "SA": values, "LM": -values.abs()}[which].argsort()


def _sorted(values: Tensor, chosen: Tensor, errors: Tensor, vectors: Tensor) -> Eigenvalues:
    order = values[chosen].argsort(descending=True)
    scale = float(values.abs().max()) or 1.0
    return Eigenvalues(values[chosen][order], errors[order] / scale, vectors[:, order])


@dataclass(frozen=True, eq=False)
class Spectrum:
    """All eigenvalues.

    Attributes:
        values: largest first, float64.
    """

    values: Float[Tensor, " n"]

    @property
    def largest(self) -> float:
        """λ_max."""
        return float(self.values[0])

    @property
    def smallest(self) -> float:
        """λ_min."""
        return float(self.values[-1])

    @property
    def negative(self) -> int:
        """How many lie below −10⁻³ · λ_max."""
        return int((self.values < -NEGATIVE * self.largest).sum())

    @property
    def negative_share(self) -> float:
        """The same as a share of all."""
        return self.negative / len(self.values)


def spectrum(operator: Operator, *, limit: int = LIMIT) -> Spectrum:
    """Compute every eigenvalue, from the whole matrix.

    Args:
        operator: what :func:`sparseflow.hessian` gives, or a symmetric matrix,
            of up to some thousands of rows.
        limit: rows at most; time grows with their cube, memory with their square.

    Raises:
        MeasureError: if there are more rows.

    Example:
        >>> spectrum(torch.diag(torch.tensor([3.0, -1.0, 2.0]))).negative_share
        0.3333333333333333
    """
    n = rows_of(operator)
    if n > limit:
        raise MeasureError(
            f"the exact spectrum of {n:,} active entries is over the limit of {limit:,}: use "
            "spectral_density, or raise limit"
        )
    return Spectrum(torch.linalg.eigvalsh(dense(operator)).flip(0))


@dataclass(frozen=True)
class Estimate:
    """A mean over random probes.

    Attributes:
        value: the mean.
        error: its standard error.
    """

    value: float
    error: float


def estimate(samples: Sequence[float]) -> Estimate:
    """Mean and standard error of at least two samples."""
    return Estimate(fmean(samples), stdev(samples) / math.sqrt(len(samples)))


def trace(operator: Operator, probes: int = 32, seed: int = 0) -> Estimate:
    """Estimate the sum of the eigenvalues as the mean of zᵀHz over vectors z of ±1.

    Exact for a diagonal matrix (Hutchinson 1989). ``operator.dense().trace()`` is
    exact for any, where there is room for it.

    Raises:
        MeasureError: if there are fewer than 2 probes.

    Example:
        >>> trace(torch.diag(torch.tensor([3.0, -1.0, 2.0])))
        Estimate(value=4.0, error=0.0)
    """
    n = rows_of(operator)
    if probes < 2:
        raise MeasureError(f"probes is {probes}; an error bar needs at least 2")
    z = signs(n, probes, seed, "trace").to(operator.device)
    return estimate((z * multiply(operator, z)).sum(0).tolist())
