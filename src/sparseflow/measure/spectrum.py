"""Eigenvalues of a symmetric operator: extreme ones, all of them, their density, their sum.

Everything here takes an operator of :func:`sparseflow.hessian` or
:func:`sparseflow.gauss_newton`, or a symmetric matrix as a tensor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sparseflow.core.errors import MeasureError
from sparseflow.core.extra import need
from sparseflow.core.random import generator
from sparseflow.measure.lanczos import Operator, dense, lanczos, multiply, rows_of, signs

NEGATIVE = 1e-3
"""An eigenvalue counts as negative below −NEGATIVE · λ_max."""

LIMIT = 10_000
SMALL = 64
RESTARTS = 200
FIRST_STEPS = 10


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
    maxiter: int = RESTARTS,
    seed: int = 0,
) -> Eigenvalues:
    """Compute k extreme eigenvalues by restarted Lanczos iterations (ARPACK).

    A few first steps estimate max|λ|; the operator is then shifted by it, so
    that ``tol`` means the same for an eigenvalue near zero. Each result is
    checked with a product of its own. Matrices of up to 64 rows, and ``k`` of
    half of the rows or more, are solved whole.

    Args:
        operator: what :func:`sparseflow.hessian` gives, or a symmetric matrix.
        k: how many.
        which: ``LA`` largest, ``SA`` smallest, ``LM`` largest by magnitude.
        tol: residual to reach, ‖Hv − λv‖ ≤ tol · max|λ|.
        maxiter: restarts at most.
        seed: of the start vector.

    Raises:
        MeasureError: if ``k`` or ``which`` is impossible, or the iteration does
            not converge: it says how far it came.

    Example:
        >>> eigenvalues(torch.diag(torch.tensor([3.0, -1.0, 2.0])), 2).values
        tensor([3., 2.], dtype=torch.float64)
    """
    n = rows_of(operator)
    if which not in ("LA", "SA", "LM"):
        raise MeasureError(f"which is {which!r}; it should be 'LA', 'SA' or 'LM'")
    if not 1 <= k <= n:
        raise MeasureError(f"k is {k}; an operator of {n} rows has 1 to {n} eigenvalues")
    if n <= SMALL or 2 * k >= n:
        return _solved_whole(operator, k, which)
    scale, start = _reach(operator, which, seed)
    if scale == 0:
        vectors = torch.eye(n, k, dtype=torch.float64, device=operator.device)
        return _verified(operator, torch.zeros_like(vectors[0]), vectors, 0.0, tol)
    values, vectors = _arpack(operator, k, which, scale, start, tol, maxiter)
    return _verified(operator, values, vectors, scale, tol)


def _solved_whole(operator: Operator, k: int, which: str) -> Eigenvalues:
    matrix = dense(operator)
    values, vectors = torch.linalg.eigh(matrix)
    rank = {"LA": -values, "SA": values, "LM": -values.abs()}[which]
    chosen = rank.argsort()[:k]
    return _verified(matrix, values[chosen], vectors[:, chosen], float(values.abs().max()), 1.0)


def _reach(operator: Operator, which: str, seed: int) -> tuple[float, Tensor]:
    """Estimate of max|λ|, and a start vector that leans to the wanted end."""
    n = operator.shape[0]
    start = torch.randn(n, generator=generator(seed, "eigenvalues", "start"), dtype=torch.float64)
    run = lanczos(operator, start.to(operator.device)[:, None], FIRST_STEPS)[0]
    values, vectors = torch.linalg.eigh(run.tridiagonal)
    scale = float(values.abs().max())
    weights = {"LA": values - values[0], "SA": values[-1] - values, "LM": values.abs()}[which]
    return scale, run.basis.T @ (vectors @ (weights * vectors[0]))


def _arpack(
    operator: Operator,
    k: int,
    which: str,
    scale: float,
    start: Tensor,
    tol: float,
    maxiter: int,
) -> tuple[Tensor, Tensor]:
    linalg = need("scipy.sparse.linalg", extra="measure")
    n = operator.shape[0]
    sign, shift = {"LA": (1.0, scale), "SA": (-1.0, scale), "LM": (1.0, 0.0)}[which]

    def matvec(v: Any) -> Any:
        x = torch.from_numpy(v).reshape(n).to(operator.device)
        return (sign * multiply(operator, x) + shift * x).cpu().numpy()

    try:
        values, vectors = linalg.eigsh(
            linalg.LinearOperator((n, n), matvec=matvec, dtype="float64"),
            k,
            which="LM" if which == "LM" else "LA",
            v0=start.cpu().numpy(),
            tol=tol / 2,
            maxiter=maxiter,
            ncv=min(n, max(2 * k + 1, k + 20)),
        )
    except linalg.ArpackNoConvergence as error:
        raise MeasureError(_not_converged(operator, k, error, sign, shift, scale, tol)) from error
    except linalg.ArpackError as error:
        raise MeasureError(f"Lanczos did not converge: {error}") from error
    found = sign * (torch.from_numpy(values) - shift)
    return found.to(operator.device), torch.from_numpy(vectors).to(operator.device)


def _not_converged(
    operator: Operator, k: int, error: Any, sign: float, shift: float, scale: float, tol: float
) -> str:
    values = sign * (torch.from_numpy(error.eigenvalues) - shift)
    text = f"Lanczos did not converge: {len(values)} of {k} eigenvalues reached a residual of "
    text += f"{tol:g} · max|λ|"
    if len(values):
        vectors = torch.from_numpy(error.eigenvectors).to(operator.device)
        worst = float(_residuals(operator, values.to(operator.device), vectors, scale).max())
        text += f" (theirs is {worst:.1e})"
    return text + "; raise maxiter or tol, or compute in float64"


def _verified(
    operator: Operator, values: Tensor, vectors: Tensor, scale: float, tol: float
) -> Eigenvalues:
    order = values.argsort(descending=True)
    values, vectors = values[order], vectors[:, order]
    residuals = _residuals(operator, values, vectors, max(scale, float(values.abs().max())))
    if float(residuals.max()) > tol:
        reached = int((residuals <= tol).sum())
        raise MeasureError(
            f"Lanczos did not converge: {reached} of {len(values)} eigenvalues have a residual "
            f"within {tol:g} · max|λ|, the worst {float(residuals.max()):.1e}; raise tol, or "
            "compute in float64"
        )
    return Eigenvalues(values, residuals, vectors)


def _residuals(operator: Operator, values: Tensor, vectors: Tensor, scale: float) -> Tensor:
    error = (multiply(operator, vectors) - values * vectors).norm(dim=0)
    return error / scale if scale else error


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
