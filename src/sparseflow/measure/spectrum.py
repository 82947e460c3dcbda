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

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sparseflow.core.errors import MeasureError
from sparseflow.core.optional import need
from sparseflow.core.random import generator
from sparseflow.measure.lanczos import Operator, dense, lanczos, multiply, rows_of, signs

NEGATIVE = 1e-3
"""An eigenvalue counts as negative below −NEGATIVE · λ_max."""

LIMIT = 10_000
SMALL = 64
RESTARTS = 100
FIRST_STEPS = 5

# ARPACK's error is relative to each eigenvalue, but to this number for one that is smaller.
_FLOOR = float(np.finfo(np.float64).eps ** (2 / 3))


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
    """Compute k extreme eigenvalues by restarted Lanczos iterations (ARPACK, through SciPy).

    The residual of each result is that of a product of its own, not what the
    iteration makes of it. An eigenvalue that occurs several times may be found
    fewer times than it occurs. Operators of up to 64 rows, and ``k`` of half of
    the rows or more, are solved whole.

    Args:
        operator: what :func:`sparseflow.hessian` gives, or a symmetric matrix.
        k: how many.
        which: ``LA`` largest, ``SA`` smallest, ``LM`` largest by magnitude.
        tol: residual to reach, ‖Hv − λv‖ ≤ tol · max|λ|. The error of λ is
            smaller still, about the square of it over the gap.
        maxiter: restarts at most, each of 20 products, or k + 1 if that is more.
        seed: of the start vector.

    Raises:
        MeasureError: if ``k`` or ``which`` is impossible, or the iteration does
            not converge: it says how far it came.
        SparseflowError: if SciPy is not installed.

    Example:
        >>> eigenvalues(torch.diag(torch.tensor([3.0, -1.0, 2.0])), 2).values
        tensor([3., 2.], dtype=torch.float64)
    """
    n = rows_of(operator)
    _check_request(operator, k, which, tol)
    if n <= SMALL or 2 * k >= n:
        values, vectors = torch.linalg.eigh(dense(operator))
        chosen = {"LA": -values, "SA": values, "LM": -values.abs()}[which].argsort()[:k]
        return _measured(operator, values[chosen], vectors[:, chosen], float(values.abs().max()))
    scale, start = _reach(operator, which, seed)
    if scale:
        values, vectors = _arpack(operator, k, which, scale, start, tol, maxiter)
    else:
        values, vectors = start.new_zeros(k), torch.eye(n, k).to(start)
    pairs = _measured(operator, values, vectors, scale)
    if not bool((pairs.residuals <= tol).all()):
        reached, worst = int((pairs.residuals <= tol).sum()), float(pairs.residuals.max())
        raise MeasureError(
            f"{reached} of {k} eigenvalues have a residual within {tol:g} · max|λ|, the worst "
            f"{worst:.1e}: products in {operator.dtype} are not exact enough; raise tol, or "
            "compute in float64"
        )
    return pairs


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


def _reach(operator: Operator, which: str, seed: int) -> tuple[float, Tensor]:
    """Estimate of max|λ|, and a start vector that leans to the wanted end."""
    stream = generator(seed, "eigenvalues", "start")
    start = torch.randn(operator.shape[0], 1, generator=stream, dtype=torch.float64)
    run = lanczos(operator, start.to(operator.device), FIRST_STEPS)[0]
    values, vectors = torch.linalg.eigh(run.tridiagonal)
    weights = {"LA": values - values[0], "SA": values[-1] - values, "LM": values.abs()}[which]
    leaning = weights * vectors[0] if bool(weights.any()) else vectors[0]
    return float(values.abs().max()), run.basis.T @ (vectors @ leaning)


def _arpack(
    operator: Operator, k: int, which: str, scale: float, start: Tensor, tol: float, maxiter: int
) -> tuple[Tensor, Tensor]:
    """Eigenvalues of H · floor / max|λ|, so that one tolerance holds for all, near zero too."""
    linalg = need("scipy.sparse.linalg", extra="measure")
    n, products = operator.shape[0], FIRST_STEPS

    def matvec(v: Any) -> Any:
        nonlocal products
        products += 1
        x = torch.from_numpy(v).reshape(n).to(operator.device)
        return multiply(operator, x).mul(_FLOOR / scale).cpu().numpy()

    try:
        values, vectors = linalg.eigsh(
            linalg.LinearOperator((n, n), matvec=matvec, dtype="float64"),
            k,
            which=which,
            v0=start.cpu().numpy(),
            tol=tol / 2,
            maxiter=maxiter,
            ncv=min(n, max(2 * k + 1, k + 20)),
        )
    except linalg.ArpackNoConvergence as error:
        raise MeasureError(
            f"Lanczos did not converge: {len(error.eigenvalues)} of {k} eigenvalues reached a "
            f"residual of {tol:g} · max|λ| in {products} products ({maxiter} restarts); raise "
            "maxiter or tol"
            + ("" if operator.dtype == torch.float64 else ", or compute in float64")
        ) from error
    except linalg.ArpackError as error:
        raise MeasureError(f"Lanczos failed after {products} products: {error}") from error
    unscaled = torch.from_numpy(values) * (scale / _FLOOR)
    return unscaled.to(operator.device), torch.from_numpy(vectors).to(operator.device)


def _measured(operator: Operator, values: Tensor, vectors: Tensor, scale: float) -> Eigenvalues:
    """Largest first, each with the residual of one product."""
    order = values.argsort(descending=True)
    values, vectors = values[order], vectors[:, order]
    errors = (multiply(operator, vectors) - values * vectors).norm(dim=0)
    return Eigenvalues(values, errors / (max(scale, float(values.abs().max())) or 1.0), vectors)


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
class Trace:
    """The sum of the eigenvalues, a mean over random probes.

    Attributes:
        value: the mean.
        error: its standard error.
    """

    value: float
    error: float


def average(samples: Sequence[float]) -> tuple[float, float]:
    """Mean of at least two samples, and its standard error."""
    return fmean(samples), stdev(samples) / math.sqrt(len(samples))


def trace(operator: Operator, probes: int = 32, seed: int = 0) -> Trace:
    """Estimate the sum of the eigenvalues as the mean of zᵀHz over vectors z of ±1.

    Exact for a diagonal matrix (Hutchinson 1989). ``operator.dense().trace()`` is
    exact for any, where there is room for it.

    Raises:
        MeasureError: if there are fewer than 2 probes.

    Example:
        >>> trace(torch.diag(torch.tensor([3.0, -1.0, 2.0])))
        Trace(value=4.0, error=0.0)
    """
    n = rows_of(operator)
    if probes < 2:
        raise MeasureError(f"probes is {probes}; an error bar needs at least 2")
    z = signs(n, probes, seed, "trace").to(operator.device)
    return Trace(*average((z * multiply(operator, z)).sum(0).tolist()))
