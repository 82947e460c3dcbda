"""What a few runs allow to say: intervals over seeds, and verdicts.

Each interval names what it assumes. Dead runs are counted first, with
:func:`proportion_interval`: a mean over living and dead runs means nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from torch import Tensor

from sparseflow.core.errors import MeasureError
from sparseflow.core.optional import need

LEVEL = 0.95
ROUNDING = 1e-12
"""Spread, relative to the values, that counts as none."""

Matrix = np.ndarray | Tensor | Sequence[Any]
Verdict = Literal["holds", "does not hold", "not settled"]


@dataclass(frozen=True)
class Estimate:
    """A number with its confidence interval.

    Attributes:
        value: the point estimate.
        low: lower bound; NaN, as ``high``, where the runs are too few for one.
        high: upper bound.
        n: number of runs (or events) that it rests on.
        level: confidence that was asked for.
    """

    value: float
    low: float
    high: float
    n: int
    level: float = LEVEL


def mean_interval(values: Iterable[float | int], *, level: float = LEVEL) -> Estimate:
    """Mean with Student's t interval: x̄ ± t_{n−1} · s/√n.

    Exact for independent normal values. One value has no interval; equal
    values have one without width.

    Raises:
        MeasureError: if there is no value, or one is not finite.

    Example:
        >>> estimate = mean_interval([1.0, 2.0, 3.0])
        >>> estimate.value, round(estimate.low, 3), round(estimate.high, 3)
        (2.0, -0.484, 4.484)
    """
    x = finite_values(values, "values")
    error = spread(x, x) / math.sqrt(len(x)) if len(x) > 1 else math.nan
    return t_interval(float(x.mean()), error, len(x) - 1, len(x), level)


def median_interval(values: Iterable[float | int], *, level: float = LEVEL) -> Estimate:
    """Median with the interval between two order statistics.

    [x₍ₖ₎, x₍ₙ₊₁₋ₖ₎] with the largest k for which 1 − 2·P(Bin(n, ½) < k) reaches
    the level: right for independent values of any one distribution. At 95 % it
    takes six runs; with fewer the bounds are NaN.

    Raises:
        MeasureError: if there is no value, or one is not finite.

    Example:
        >>> median_interval([5.0, 1.0, 2.0, 4.0, 3.0, 9.0])
        Estimate(value=3.5, low=1.0, high=9.0, n=6, level=0.95)
    """
    x = np.sort(finite_values(values, "values"))
    n, k, missed = len(x), 0, Fraction(2, 2 ** len(x))
    while missed <= 1 - _level(level):
        k += 1
        missed += Fraction(2 * math.comb(n, k), 2**n)
    low, high = (float(x[k - 1]), float(x[n - k])) if k else (math.nan, math.nan)
    return Estimate(float(np.median(x)), low, high, n, level)


def proportion_interval(k: int, n: int, *, level: float = LEVEL) -> Estimate:
    """Share k/n with the exact interval of Clopper and Pearson (1934).

    For counts of independent events: dead runs, say.

    Raises:
        MeasureError: unless 0 ≤ k ≤ n and n ≥ 1.

    Example:
        >>> estimate = proportion_interval(2, 5)
        >>> estimate.value, round(estimate.low, 3), round(estimate.high, 3)
        (0.4, 0.053, 0.853)
    """
    if not 0 <= k <= n or n < 1:
        raise MeasureError(f"{k} of {n} is not a proportion: it takes 0 ≤ k ≤ n and n ≥ 1")
    test = need("scipy.stats", extra="measure").binomtest(k, n)
    interval = test.proportion_ci(confidence_level=_level(level), method="exact")
    return Estimate(k / n, float(interval.low), float(interval.high), n, level)


def pair_interval(matrix: Matrix, *, level: float = LEVEL) -> Estimate:
    """Mean over the pairs of n runs, with an error that knows that pairs share runs.

    The mean U = Σ_{i<j} d_ij / C(n, 2) is a U-statistic of degree 2. Its
    standard error is that of the delete-one-run jackknife (Arvesen 1969):
    s² = (n − 1)/n · Σ_i (U₋ᵢ − U)², where U₋ᵢ leaves out all pairs of run i. The
    interval is U ± t_{n−1} · s; noise of single pairs makes it too wide rather
    than too narrow. With two runs its bounds are NaN.

    Args:
        matrix: d [runs, runs], symmetric: a disagreement matrix, say. The
            diagonal is ignored.
        level: confidence.

    Returns:
        The estimate; its ``n`` is the number of runs, not of pairs.

    Raises:
        MeasureError: unless the matrix is square, symmetric, finite and of two
            runs or more.

    Example:
        >>> estimate = pair_interval([[0, 1, 2], [1, 0, 3], [2, 3, 0]])
        >>> estimate.value, round(estimate.high - estimate.value, 3)
        (2.0, 4.968)
    """
    value, error, n = _jackknife(matrix, "matrix")
    return t_interval(value, error, n - 1, n, level)


def pair_difference(a: Matrix, b: Matrix, *, level: float = LEVEL) -> Estimate:
    """Mean over the pairs of group a minus that of group b, for groups that share no run.

    Standard errors are those of :func:`pair_interval`, joined as in Welch's
    test with the degrees of freedom of Satterthwaite.

    Args:
        a: symmetric matrix of one group, as for :func:`pair_interval`.
        b: that of the other.
        level: confidence.

    Raises:
        MeasureError: as :func:`pair_interval`.

    Example:
        >>> alike = [[0, 1, 2], [1, 0, 1], [2, 1, 0]]
        >>> apart = [[0, 9, 8], [9, 0, 9], [8, 9, 0]]
        >>> verdict(pair_difference(apart, alike), above=0.0)
        'holds'
    """
    first, s, n = _jackknife(a, "a")
    second, r, m = _jackknife(b, "b")
    error, freedom = welch(s, n - 1, r, m - 1)
    return t_interval(first - second, error, freedom, n + m, level)


def verdict(
    estimate: Estimate, *, above: float | int | None = None, below: float | int | None = None
) -> Verdict:
    """Judge the claim that a value lies above, or below, a bound, by its interval.

    It holds if the whole interval lies strictly on the claimed side, does not
    hold if no point of it does, and is not settled else, or without an
    interval. 'No more than a margin' is ``below=margin``.

    Raises:
        MeasureError: unless exactly one bound is given, and it is a number.

    Example:
        >>> gain = mean_interval([0.8, 1.1, 0.9])
        >>> verdict(gain, above=0.0), verdict(gain, below=0.0), verdict(gain, above=1.0)
        ('holds', 'does not hold', 'not settled')
    """
    if (above is None) == (below is None):
        raise MeasureError(f"above is {above}, below is {below}; a claim has exactly one bound")
    bound = above if above is not None else below
    if bound is None or math.isnan(bound):
        raise MeasureError(f"the bound is {bound}; it must be a number")
    low, high = estimate.low, estimate.high
    if above is None:
        low, high, bound = -high, -low, -bound
    if low > bound:
        return "holds"
    return "does not hold" if high <= bound else "not settled"


def _level(level: float) -> float:
    if not 0 < level < 1:
        raise MeasureError(f"level is {level}; it lies between 0 and 1")
    return level


def finite_values(
    values: Iterable[float | int], name: str, keys: Sequence[Any] | None = None
) -> Float[np.ndarray, " n"]:
    """Values as float64, or an error that names the first that is not finite."""
    x = np.array([float(value) for value in values], dtype=np.float64)
    if not len(x):
        raise MeasureError(f"{name} is empty; at least one value is needed")
    wrong = np.flatnonzero(~np.isfinite(x))
    if len(wrong):
        at = wrong[0] if keys is None else keys[wrong[0]]
        raise MeasureError(f"{name}[{at}] is {x[wrong[0]]}; count runs that failed apart")
    return x


def snap(x: Any, scale: Float[np.ndarray, " n"]) -> Any:
    """Zero what is no more than the rounding of numbers of this scale."""
    return np.where(np.abs(x) <= ROUNDING * np.abs(scale).max(), 0.0, x)


def spread(x: Float[np.ndarray, " n"], scale: Float[np.ndarray, " m"]) -> float:
    """Sample standard deviation; zero where it is rounding only."""
    return float(snap(x.std(ddof=1), scale))


def t_interval(value: float, error: float, freedom: float | int, n: int, level: float) -> Estimate:
    """Value ± Student's quantile times the standard error; NaN bounds without a freedom."""
    t = need("scipy.stats", extra="measure").t
    half = float(t.ppf((1 + _level(level)) / 2, freedom)) * error if freedom >= 1 else math.nan
    return Estimate(value, value - half, value + half, n, level)


def welch(
    s: float, s_freedom: float | int, r: float, r_freedom: float | int
) -> tuple[float, float | int]:
    """Standard error of a difference and its degrees of freedom (Satterthwaite)."""
    error = math.hypot(s, r)
    if not error > 0:
        return error, min(s_freedom, r_freedom)
    return error, 1 / ((s / error) ** 4 / s_freedom + (r / error) ** 4 / r_freedom)


def _jackknife(matrix: Matrix, name: str) -> tuple[float, float, int]:
    """Mean over pairs, its jackknife error (NaN for two runs), number of runs."""
    plain = matrix.detach().cpu().numpy() if isinstance(matrix, Tensor) else matrix
    d = np.array(plain, dtype=np.float64)
    if d.ndim != 2 or d.shape[0] != d.shape[1] or len(d) < 2:
        raise MeasureError(f"{name} has shape {list(d.shape)}; it is square, of two runs or more")
    np.fill_diagonal(d, 0.0)
    if not np.isfinite(d).all():
        i, j = np.argwhere(~np.isfinite(d))[0]
        raise MeasureError(f"{name}[{i}, {j}] is {d[i, j]}; it must be finite")
    if not np.allclose(d, d.T, rtol=1e-9, atol=0):
        i, j = np.unravel_index(np.abs(d - d.T).argmax(), d.shape)
        raise MeasureError(
            f"{name}[{i}, {j}] is {d[i, j]:g} but [{j}, {i}] {d[j, i]:g}; it must be symmetric"
        )
    n, total = len(d), d.sum() / 2
    value = total / math.comb(n, 2)
    if n == 2:
        return float(value), math.nan, n
    without = (total - d.sum(1)) / math.comb(n - 1, 2)
    change = snap(without - value, without)
    return float(value), math.sqrt((n - 1) / n * float(change @ change)), n
