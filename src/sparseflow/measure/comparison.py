"""One group of runs against another: differences, tests, effect sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from sparseflow.core.errors import MeasureError
from sparseflow.core.optional import need
from sparseflow.core.random import generator
from sparseflow.measure.statistics import (
    LEVEL,
    ROUNDING,
    Estimate,
    finite_values,
    snap,
    spread,
    t_interval,
    welch,
)

RESAMPLES = 20_000
"""Relabellings up to which all are tried; as many are drawn where there are more."""

EXACT_PAIRS = 20
"""Pairs up to which all sign flips are tried, a million; of more pairs some are drawn."""


@dataclass(frozen=True)
class Comparison:
    """Group a against group b.

    Attributes:
        difference: mean of a minus mean of b, with its interval.
        p: two-sided p-value of the t test (paired, or Welch's). Without any
            spread it is 0, or NaN if there is no difference either.
        p_exact: two-sided p-value of the permutation test, which assumes no
            distribution. It cannot fall below 2/2ⁿ for n pairs, nor below 2
            over the number of ways to split two groups.
        effect: standardised mean difference with Hedges' small-sample
            correction: d_z of the differences, or g. Infinite where there is
            no spread; NaN where there is no difference either, or for two
            pairs, which leave no unbiased estimate.
        dominance: Cliff's delta: how often a exceeds b less how often b
            exceeds a, within pairs or between all runs. From −1 to 1, and
            robust where outcomes are bimodal.
    """

    difference: Estimate
    p: float
    p_exact: float
    effect: float
    dominance: float


def paired(
    a: Mapping[Any, float | int], b: Mapping[Any, float | int], *, level: float = LEVEL
) -> Comparison:
    """Compare two groups seed by seed, over the seeds that both have.

    For runs that share something besides the treatment: parent, data order. The
    t interval and test take the differences for normal; the permutation test
    flips their signs.

    Args:
        a: value of each seed.
        b: value of each seed.
        level: confidence.

    Raises:
        MeasureError: if fewer than two seeds are shared, or a value is not
            finite.

    Example:
        >>> comparison = paired({0: 2.0, 1: 4.0, 2: 6.0}, {0: 1.0, 1: 2.0, 2: 3.0, 3: 9.0})
        >>> d = comparison.difference
        >>> d.value, d.n, comparison.p_exact, comparison.dominance
        (2.0, 3, 0.25, 1.0)
    """
    shared = [key for key in a if key in b]
    if len(shared) < 2:
        raise MeasureError(
            f"a has {_keys(a)}, b has {_keys(b)}, shared: {_keys(shared)}; "
            "a paired comparison takes two or more"
        )
    x = finite_values((a[key] for key in shared), "a", shared)
    y = finite_values((b[key] for key in shared), "b", shared)
    both, n = np.concatenate([x, y]), len(shared)
    d = snap(x - y, both)
    deviation = spread(d, both)
    error = deviation / math.sqrt(n)
    return _comparison(
        t_interval(float(d.mean()), error, n - 1, n, level),
        error,
        n - 1,
        effect=_hedges(n - 1) * _ratio(float(d.mean()), deviation),
        p_exact=_flipped(d),
        dominance=float(np.sign(d).mean()),
    )


def unpaired(
    a: Iterable[float | int], b: Iterable[float | int], *, level: float = LEVEL
) -> Comparison:
    """Compare two groups of runs that share nothing, by Welch's t.

    The groups may differ in spread and size; ``effect`` is Hedges' g over the
    pooled standard deviation, and the permutation test deals the runs out again.

    Raises:
        MeasureError: if a group has fewer than two values, or one is not finite.

    Example:
        >>> comparison = unpaired([4.0, 5.0, 6.0], [1.0, 2.0, 3.0])
        >>> comparison.difference.value, comparison.p_exact, comparison.dominance
        (3.0, 0.1, 1.0)
    """
    x, y = finite_values(a, "a"), finite_values(b, "b")
    if min(len(x), len(y)) < 2:
        raise MeasureError(f"a has {len(x)} values, b {len(y)}; a comparison takes two of each")
    both, n = np.concatenate([x, y]), len(x) + len(y)
    x, y = (snap(group - both[0], both) for group in (x, y))  # equal but for rounding: equal
    left, right = spread(x, both), spread(y, both)
    pooled = math.sqrt(((len(x) - 1) * left**2 + (len(y) - 1) * right**2) / (n - 2))
    error, freedom = welch(
        left / math.sqrt(len(x)), len(x) - 1, right / math.sqrt(len(y)), len(y) - 1
    )
    value = float(snap(x.mean() - y.mean(), both))
    return _comparison(
        t_interval(value, error, freedom, n, level),
        error,
        freedom,
        effect=_hedges(n - 2) * _ratio(value, pooled),
        p_exact=_permuted((x, y), "independent", lambda u, v, axis: u.mean(axis) - v.mean(axis)),
        dominance=float(np.sign(snap(x[:, None] - y, both)).mean()),
    )


def mcnemar(a_only: int, b_only: int) -> float:
    """Two-sided exact p-value of McNemar's test: pairs in which one has an outcome alone.

    Under the null hypothesis each such pair is equally likely to be either; pairs
    that agree say nothing (McNemar 1947). For dead runs, say.

    Args:
        a_only: pairs with the outcome in a, and not in b.
        b_only: pairs with it in b, and not in a.

    Raises:
        MeasureError: if a number is negative.

    Example:
        >>> mcnemar(0, 5), mcnemar(2, 2), mcnemar(0, 0)
        (0.0625, 1.0, 1.0)
    """
    if min(a_only, b_only) < 0:
        raise MeasureError(f"{a_only} and {b_only} pairs: a count must not be negative")
    n, least = a_only + b_only, min(a_only, b_only)
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(least + 1)) / 2**n)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of several tests, adjusted so that one false finding among all is as rare.

    Holm 1979: of m values in order, p₍ᵢ₎ becomes max over j ≤ i of min(1, (m − j + 1) · p₍ⱼ₎).
    NaN stands for no test, and is left out.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    adjusted, worst = [math.nan] * len(p_values), 0.0
    order = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    for rank, (p, i) in enumerate(order):
        worst = adjusted[i] = max(worst, min(1.0, (len(order) - rank) * p))
    return adjusted


def _keys(keys: Iterable[Any]) -> str:
    return ", ".join(map(str, keys)) or "none"


def _flipped(d: Float[np.ndarray, " n"]) -> float:
    """Two-sided p-value of the mean under all flips of signs, or under a fixed draw of many."""
    unit = ROUNDING * float(np.abs(d).max())
    if len(d) > EXACT_PAIRS or not unit:
        return _permuted((d,), "samples", lambda v, axis: v.mean(axis))
    sums = d[:1]  # its own sign stays: flipping all of them changes no absolute value
    for value in d[1:]:
        sums = np.concatenate([sums + value, sums - value])
    reached = np.rint(np.abs(sums) / len(d) / unit) >= np.rint(abs(d.mean()) / unit)
    return float(reached.mean())


def _permuted(data: tuple[Any, ...], kind: str, statistic: Callable[..., Any]) -> float:
    """Two-sided p-value over all permutations, or over a fixed draw of many.

    The statistic is counted in units of the rounding of the data: permutations
    that tie must not be told apart by it.
    """
    unit = ROUNDING * max(float(np.abs(values).max()) for values in data)
    if not unit:
        return 1.0
    seed = int(torch.randint(2**62, (), generator=generator(0, "permutation")))
    test = need("scipy.stats", extra="measure").permutation_test
    result = test(
        data,
        lambda *groups, axis: np.rint(statistic(*groups, axis=axis) / unit),
        permutation_type=kind,
        vectorized=True,
        n_resamples=RESAMPLES,
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def _hedges(freedom: int) -> float:
    """Factor that makes a standardised difference unbiased (Hedges 1981); none for one degree."""
    if freedom < 2:
        return math.nan
    ratio = math.lgamma(freedom / 2) - math.lgamma((freedom - 1) / 2)
    return math.exp(ratio) / math.sqrt(freedom / 2)


def _comparison(
    difference: Estimate, error: float, freedom: float | int, *, effect: float, **rest: float
) -> Comparison:
    t = _ratio(difference.value, error)
    p = 2 * float(need("scipy.stats", extra="measure").t.sf(abs(t), freedom))
    return Comparison(difference, p, effect=effect, **rest)


def _ratio(x: float, y: float) -> float:
    """x/y, infinite where y is zero; NaN where both are."""
    if y:
        return x / y
    return math.copysign(math.inf, x) if x else math.nan
