"""Intervals, comparisons and verdicts against closed forms, scipy and simulation."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from sparseflow.core.errors import MeasureError
from sparseflow.measure import comparison
from sparseflow.measure.comparison import Comparison, holm, mcnemar, paired, unpaired
from sparseflow.measure.statistics import (
    Estimate,
    mean_interval,
    median_interval,
    pair_difference,
    pair_interval,
    proportion_interval,
    verdict,
)

NAN, INF = math.nan, math.inf
A = [97.04, 97.31, 96.82, 97.55, 97.11]
B = [96.40, 97.02, 96.71, 96.95, 97.20]
numbers = st.floats(-100, 100).map(lambda x: round(x, 3))


def close(found: Estimate, value: float, low: float, high: float, n: int) -> bool:
    figures = (found.value, found.low, found.high, found.n)
    return figures == pytest.approx((value, low, high, n), rel=1e-9)


def covers(found: Estimate, truth: float) -> bool:
    return found.low <= truth <= found.high


def symmetric(n: int, seed: int = 0) -> np.ndarray:
    d = np.random.default_rng(seed).random((n, n))
    return d + d.T


# ---- one group


def test_mean_interval_by_hand():
    """s = 1, n = 3, t₂(0.975) = 4.302653."""
    found = mean_interval([1.0, 2.0, 3.0])
    assert (found.value, found.n, found.level) == (2.0, 3, 0.95)
    assert found.low == pytest.approx(2 - 4.302652730 / math.sqrt(3), abs=1e-8)
    assert found.high == pytest.approx(2 + 4.302652730 / math.sqrt(3), abs=1e-8)


@pytest.mark.parametrize("level", [0.5, 0.9, 0.99])
def test_mean_interval_is_that_of_scipy(level):
    low, high = stats.t.interval(level, len(A) - 1, np.mean(A), stats.sem(A))
    found = mean_interval(iter(A), level=level)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-12)


def test_mean_of_one_has_no_interval_and_of_equals_no_width():
    one = mean_interval([3.0])
    assert one.value == 3.0
    assert math.isnan(one.low)
    assert math.isnan(one.high)
    assert close(mean_interval([0.1 + 0.2, 0.3, 0.3]), 0.3, 0.3, 0.3, 3)


@pytest.mark.parametrize("n", range(1, 16))
@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.99])
def test_median_interval_has_the_coverage_it_promises_and_no_order_statistic_to_spare(n, level):
    """P(x₍ₖ₎ ≤ median ≤ x₍ₙ₊₁₋ₖ₎) = P(k ≤ Bin(n, ½) ≤ n − k), from the values 1 … n."""

    def coverage(k):
        return stats.binom.cdf(n - k, n, 0.5) - stats.binom.cdf(k - 1, n, 0.5)

    found = median_interval(np.random.default_rng(n).permutation(n) + 1.0, level=level)
    assert found.value == (n + 1) / 2
    if math.isnan(found.low):
        assert math.isnan(found.high)
        assert coverage(1) < level
        return
    k = int(found.low)
    assert found.high == n + 1 - k
    assert coverage(k) >= level - 1e-12
    assert k + 1 > n - k or coverage(k + 1) < level


def test_median_at_95_percent_takes_six_runs():
    assert math.isnan(median_interval(A).low)
    assert (median_interval([*A, 0.0]).low, median_interval([*A, 0.0]).high) == (0.0, 97.55)
    assert median_interval(map(float, range(3000))).low == pytest.approx(1445, abs=2)


def test_proportion_by_hand():
    """No failure in n: the upper bound is 1 − (α/2)^(1/n)."""
    none = proportion_interval(0, 5)
    assert close(none, 0.0, 0.0, 1 - 0.025 ** (1 / 5), 5)
    some = proportion_interval(2, 5, level=0.9)
    assert stats.binom.sf(1, 5, some.low) == pytest.approx(0.05)
    assert stats.binom.cdf(2, 5, some.high) == pytest.approx(0.05)


# ---- pairs of runs


@pytest.mark.parametrize("n", [3, 4, 7])
def test_pair_interval_against_leaving_each_run_out(n):
    d = symmetric(n)
    pairs = list(itertools.combinations(range(n), 2))
    mean = float(np.mean([d[p] for p in pairs]))
    without = [float(np.mean([d[p] for p in pairs if i not in p])) for i in range(n)]
    error = math.sqrt((n - 1) / n * sum((u - np.mean(without)) ** 2 for u in without))
    half = float(stats.t.ppf(0.975, n - 1)) * error
    found = pair_interval(torch.from_numpy(d))
    assert close(found, mean, mean - half, mean + half, n)


def test_pair_interval_of_sums_is_twice_that_of_the_mean():
    """With d_ij = a_i + a_j the U-statistic is 2·ā, and its jackknife error that of 2·ā."""
    a = np.array(A)
    found, plain = pair_interval(a[:, None] + a), mean_interval(A)
    assert (found.low, found.high) == pytest.approx((2 * plain.low, 2 * plain.high), rel=1e-10)


def test_pair_interval_against_a_bootstrap_over_runs():
    """Resampled runs take their pairs along; pairs of a run with itself are left out."""
    n, rng = 40, np.random.default_rng(1)
    a, e = rng.exponential(size=n), rng.normal(size=(n, n)) * 0.3
    d = a[:, None] * a + e + e.T
    means = []
    for _ in range(1500):
        chosen = rng.integers(n, size=n)
        apart = chosen[:, None] != chosen
        means.append(d[np.ix_(chosen, chosen)][apart].mean())
    found = pair_interval(d)
    error = (found.high - found.value) / stats.t.ppf(0.975, n - 1)
    assert error == pytest.approx(np.std(means), rel=0.15)


def test_two_runs_have_a_mean_and_no_interval():
    found = pair_interval([[0.0, 0.25], [0.25, 0.0]])
    assert (found.value, found.n) == (0.25, 2)
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert math.isnan(pair_difference([[0.0, 0.25], [0.25, 0.0]], symmetric(4)).low)


def test_the_diagonal_does_not_count():
    d = symmetric(5)
    other = d.copy()
    np.fill_diagonal(other, NAN)
    assert pair_interval(d) == pair_interval(other)


@given(hnp.arrays(float, (6, 6), elements=st.floats(0, 1)), st.permutations(range(6)))
def test_pair_interval_knows_no_order(values, order):
    d = values + values.T
    here, there = pair_interval(d), pair_interval(d[np.ix_(order, order)])
    for field in ("value", "low", "high"):
        assert getattr(here, field) == pytest.approx(getattr(there, field), abs=1e-12)


def random_effects(n: int, rng: np.random.Generator, noise: float) -> np.ndarray:
    """d_ij = 3 + a_i + a_j + e_ij: every pair has the mean 3, and shares its runs."""
    a, e = rng.normal(size=n), rng.normal(size=(n, n)) * noise / math.sqrt(2)
    return 3 + a[:, None] + a + e + e.T


@pytest.mark.parametrize("noise", [0.0, 0.5])
@pytest.mark.parametrize("n", [5, 10])
def test_coverage_over_pairs_where_the_naive_error_fails(n, noise):
    rng, trials = np.random.default_rng(0), 1200
    upper = np.triu_indices(n, 1)
    ours = naive = 0
    for _ in range(trials):
        d = random_effects(n, rng, noise)
        ours += covers(pair_interval(d), 3.0)
        x = d[upper]
        half = stats.norm.ppf(0.975) * x.std(ddof=1) / math.sqrt(len(x))
        naive += abs(x.mean() - 3) <= half
    assert 0.93 <= ours / trials <= 0.98
    assert naive / trials < 0.75


def test_noise_of_single_pairs_makes_the_interval_too_wide_never_too_narrow():
    rng, trials = np.random.default_rng(0), 400
    found = 0
    for _ in range(trials):
        e = rng.normal(size=(6, 6))
        found += covers(pair_interval(e + e.T), 0.0)
    assert found / trials > 0.97


def test_difference_of_pairs():
    """Two groups of sums: Welch's interval of 2·ā − 2·b̄."""
    a, b = np.array(A), np.array(B[:4])
    found = pair_difference(a[:, None] + a, b[:, None] + b)
    welch = stats.ttest_ind(2 * a, 2 * b, equal_var=False).confidence_interval()
    assert found.n == 9
    assert (found.low, found.high) == pytest.approx((welch.low, welch.high), rel=1e-9)
    same = pair_difference(np.ones((3, 3)), np.zeros((4, 4)))
    assert same == Estimate(1.0, 1.0, 1.0, 7)


# ---- two groups


def test_paired_against_scipy():
    a, b = dict(enumerate(A)), dict(enumerate(B))
    found = paired(a, {9: 0.0, **dict(reversed(b.items()))})
    referee = stats.ttest_rel(A, B)
    bounds = referee.confidence_interval()
    assert found.p == pytest.approx(referee.pvalue, rel=1e-10)
    assert (found.difference.low, found.difference.high) == pytest.approx(bounds, rel=1e-9)
    assert found.difference.value == pytest.approx(np.mean(A) - np.mean(B))
    assert found.difference.n == 5
    d = np.subtract(A, B)
    means = [np.mean(d * signs) for signs in itertools.product([1, -1], repeat=5)]
    assert found.p_exact == np.mean(np.abs(means) >= abs(d.mean()) - 1e-12)
    assert found.dominance == np.mean(np.sign(d))
    # Γ(2)/(√2·Γ(3/2)) for 4 degrees of freedom
    factor = 1 / (math.sqrt(2) * math.gamma(1.5))
    assert found.effect == pytest.approx(factor * d.mean() / d.std(ddof=1), rel=1e-10)


def test_unpaired_against_scipy():
    b = B[:4]
    found = unpaired(A, iter(b), level=0.9)
    referee = stats.ttest_ind(A, b, equal_var=False)
    bounds = referee.confidence_interval(0.9)
    assert found.p == pytest.approx(referee.pvalue, rel=1e-10)
    assert (found.difference.low, found.difference.high) == pytest.approx(bounds, rel=1e-9)
    assert (found.difference.n, found.difference.level) == (9, 0.9)
    both = np.array(A + b)
    apart = []
    for chosen in itertools.combinations(range(9), 5):
        mask = np.isin(range(9), chosen)
        apart.append(both[mask].mean() - both[~mask].mean())
    more, less = (np.mean(s * (np.array(apart) - apart[0]) >= -1e-12) for s in (1, -1))
    assert found.p_exact == pytest.approx(2 * min(more, less))
    assert found.dominance == np.mean([np.sign(x - y) for x in A for y in b])
    pooled = math.sqrt((4 * np.var(A, ddof=1) + 3 * np.var(b, ddof=1)) / 7)
    factor = math.gamma(3.5) / (math.sqrt(3.5) * math.gamma(3))
    assert found.effect == pytest.approx(factor * (np.mean(A) - np.mean(b)) / pooled, rel=1e-10)


def test_the_effect_is_unbiased():
    """Hedges' factor undoes the bias of the plain d at 4 degrees of freedom, which is 25 %."""
    x = np.random.default_rng(0).normal(1.0, 1.0, size=(40_000, 5))
    plain = x.mean(1) / x.std(1, ddof=1)
    one = paired(dict(enumerate(x[0])), dict.fromkeys(range(5), 0.0)).effect
    factor = one / plain[0]
    assert plain.mean() == pytest.approx(1.253, abs=0.02)
    assert factor * plain.mean() == pytest.approx(1.0, abs=0.02)


def test_many_pairs_draw_their_permutations_and_repeat():
    x = np.random.default_rng(0).normal(0.4, 1.0, size=30)
    a, b = dict(enumerate(x.tolist())), dict.fromkeys(range(30), 0.0)
    found = paired(a, b)
    assert found == paired(a, b)
    assert found.p_exact == pytest.approx(found.p, abs=0.02)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([200, 0, 1000, 200], [300, 1000, 100, 1]),
        ([300, 1000, 100, 1], [200, 0, 1000, 200]),
        ([-100, 200, 0, -300, 300, -300, 100], [0, 100, -100, -100, -300, 300, 0]),
        ([0, 100, -100, -100, -300, 300, 0], [-100, 200, 0, -300, 300, -300, 100]),
    ],
)
def test_permutations_that_tie_count_as_such(a, b):
    """In whole thousandths nothing rounds; the same in floating point must give no other share."""
    n = len(a)
    splits = [sum(chosen) for chosen in itertools.combinations(a + b, n)]
    more = np.mean([total >= sum(a) for total in splits])
    less = np.mean([total <= sum(a) for total in splits])
    x, y = ([value / 1000 for value in group] for group in (a, b))
    assert unpaired(x, y).p_exact == pytest.approx(min(2 * min(more, less), 1.0))
    d = np.subtract(a, b)
    flips = [d @ signs for signs in itertools.product([1, -1], repeat=n)]
    compared = paired(dict(enumerate(x)), dict(enumerate(y)))
    assert compared.p_exact == np.mean(np.abs(flips) >= abs(d.sum()))


@settings(max_examples=30)
@given(st.lists(st.tuples(numbers, numbers), min_size=3, max_size=5))
def test_swapping_the_groups_turns_the_sign(pairs):
    a, b = (dict(enumerate(x)) for x in zip(*pairs, strict=True))
    for here, there in (
        (paired(a, b), paired(b, a)),
        (unpaired(a.values(), b.values()), unpaired(b.values(), a.values())),
    ):
        low, high = there.difference.low, there.difference.high
        assert (here.difference.low, here.difference.high) == pytest.approx((-high, -low))
        assert here.dominance == pytest.approx(-there.dominance)
        assert here.effect == pytest.approx(-there.effect, nan_ok=True)
        assert (here.p, here.p_exact) == pytest.approx((there.p, there.p_exact), nan_ok=True)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_no_spread(sign):
    """98.3 − 98.2 is not 97.2 − 97.1 in floating point."""
    a, b = {0: 98.3, 1: 97.2, 2: 50.1}, {0: 98.2, 1: 97.1, 2: 50.0}
    found = paired(a, b) if sign > 0 else paired(b, a)
    assert close(found.difference, sign * 0.1, sign * 0.1, sign * 0.1, 3)
    assert found == Comparison(found.difference, 0.0, 0.25, sign * INF, sign)
    apart = unpaired([11.35 * sign] * 3, [0.0] * 2)
    assert apart.effect == sign * INF
    assert (apart.p, apart.p_exact, apart.dominance) == (0.0, 0.2, sign)


def test_no_spread_and_no_difference():
    third = 0.1 + 0.2  # a little more than 0.3
    for found in (
        paired({0: 1.0, 1: 2.0, 2: 0.3}, {0: 1.0, 1: 2.0, 2: third}),
        unpaired([0.3] * 3, [third] * 4),
    ):
        assert (found.difference.value, found.difference.low, found.difference.high) == (0, 0, 0)
        assert math.isnan(found.p)
        assert math.isnan(found.effect)
        assert (found.p_exact, found.dominance) == (1.0, 0.0)


def test_two_pairs_have_no_unbiased_effect():
    assert math.isnan(paired({0: 1.0, 1: 5.0}, {0: 0.0, 1: 1.0}).effect)


# ---- verdicts


@pytest.mark.parametrize(
    ("low", "high", "bound", "is_above", "is_below"),
    [
        (1.0, 2.0, 0.0, "holds", "does not hold"),
        (1.0, 2.0, 3.0, "does not hold", "holds"),
        (-1.0, 2.0, 0.0, "not settled", "not settled"),
        (0.0, 2.0, 0.0, "not settled", "does not hold"),
        (-2.0, 0.0, 0.0, "does not hold", "not settled"),
        (0.0, 0.0, 0.0, "does not hold", "does not hold"),
        (NAN, NAN, 0.0, "not settled", "not settled"),
    ],
)
def test_verdict(low, high, bound, is_above, is_below):
    found = Estimate((low + high) / 2, low, high, 5)
    assert verdict(found, above=bound) == is_above
    assert verdict(found, below=bound) == is_below


# ---- coverage in practice


@pytest.mark.slow
def test_coverage_of_the_intervals(monkeypatch):
    monkeypatch.setattr(comparison, "_permuted", lambda *_: 1.0)  # slow, and not of interest
    rng, trials = np.random.default_rng(0), 800
    hits = np.zeros(4)
    for _ in range(trials):
        a, b = rng.normal(1, 1, size=5), rng.normal(0, 2, size=7)
        skewed = rng.exponential(size=9)
        keys = range(5)
        compared = paired(dict(zip(keys, a, strict=True)), dict(zip(keys, b[:5], strict=True)))
        hits += [
            covers(mean_interval(a), 1.0),
            covers(median_interval(skewed), math.log(2)),
            covers(compared.difference, 1.0),
            covers(unpaired(a, b).difference, 1.0),
        ]
    mean, median, pairs, welch = hits / trials
    assert mean == pytest.approx(0.95, abs=0.02)
    assert median == pytest.approx(0.961, abs=0.02)
    assert pairs == pytest.approx(0.95, abs=0.02)
    assert welch == pytest.approx(0.95, abs=0.02)


# ---- bad input


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: mean_interval([]), "values is empty"),
        (lambda: mean_interval([1.0, NAN]), r"values\[1\] is nan"),
        (lambda: median_interval([1.0, 2.0, INF]), r"values\[2\] is inf"),
        (lambda: mean_interval([1.0, 2.0], level=95.0), "level is 95.0"),
        (lambda: median_interval([1.0, 2.0], level=0.0), "level is 0.0"),
        (lambda: proportion_interval(1, 2, level=1.0), "level is 1.0"),
        (lambda: proportion_interval(6, 5), "6 of 5 is not a proportion"),
        (lambda: proportion_interval(-1, 5), "-1 of 5 is not a proportion"),
        (lambda: proportion_interval(0, 0), "0 of 0 is not a proportion"),
        (lambda: pair_interval([[0.0]]), r"matrix has shape \[1, 1\]"),
        (lambda: pair_interval([[0.0, 1.0]]), r"matrix has shape \[1, 2\]"),
        (lambda: pair_interval([[0.0, 1.0], [2.0, 0.0]]), r"\[0, 1\] is 1 but \[1, 0\] 2"),
        (lambda: pair_interval([[0.0, NAN], [NAN, 0.0]]), r"matrix\[0, 1\] is nan"),
        (lambda: pair_difference(symmetric(3), [[1.0]]), r"b has shape \[1, 1\]"),
        (
            lambda: paired({0: 1.0, 1: 2.0}, {1: 1.0, 2: 2.0}),
            "a has 0, 1, b has 1, 2, shared: 1; a paired comparison takes two",
        ),
        (lambda: paired({0: 1.0}, {}), "a has 0, b has none, shared: none"),
        (lambda: paired({3: 1.0, 7: NAN}, {7: 1.0, 3: 0.0}), r"a\[7\] is nan"),
        (lambda: unpaired([1.0], [1.0, 2.0]), "a has 1 values, b 2"),
        (lambda: unpaired([1.0, 2.0], [1.0, -INF]), r"b\[1\] is -inf"),
        (lambda: verdict(mean_interval(A)), "above is None, below is None"),
        (lambda: verdict(mean_interval(A), above=0.0, below=1.0), "exactly one bound"),
        (lambda: verdict(mean_interval(A), above=NAN), "the bound is nan"),
    ],
)
def test_bad_input_is_one_clear_line(call, words):
    with pytest.raises(MeasureError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


# ---- several tests at once, and pairs in which one alone has an outcome


def test_sign_flips_are_counted_whole_up_to_twenty_pairs():
    values = {k: float(v) for k, v in enumerate((3, -1, 4, 1, -5, 9, 2, -6, 5, 3))}
    none = dict.fromkeys(values, 0.0)
    observed = abs(sum(values.values()))
    flips = itertools.product((1, -1), repeat=len(values))
    reached = [
        abs(sum(s * v for s, v in zip(signs, values.values(), strict=True))) >= observed
        for signs in flips
    ]
    assert paired(values, none).p_exact == sum(reached) / len(reached)
    twenty = {k: 1.0 + k / 7 for k in range(20)}
    assert paired(twenty, dict.fromkeys(twenty, 0.0)).p_exact == 2 / 2**20


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    adjusted = holm([0.02, float("nan"), 0.03])
    assert adjusted[0] == adjusted[2] == pytest.approx(0.04)
    assert math.isnan(adjusted[1])
    assert holm([]) == []


@pytest.mark.parametrize(("a", "b"), [(0, 1), (1, 5), (3, 3), (0, 10), (7, 2)])
def test_mcnemar_is_the_binomial_test(a, b):
    expected = stats.binomtest(a, a + b, 0.5).pvalue
    assert mcnemar(a, b) == pytest.approx(expected)
    assert mcnemar(b, a) == mcnemar(a, b)
    with pytest.raises(MeasureError, match="must not be negative"):
        mcnemar(-1, b)
