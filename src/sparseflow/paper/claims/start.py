"""What initialisation does: signal, gradient and curvature at step 0, and accuracy."""

from __future__ import annotations

import math

from sparseflow.init import FAN_IN, MASKED_DENSE
from sparseflow.measure.statistics import Estimate, proportion_interval
from sparseflow.paper.claims.measures import gather, of_runs, of_starts, runs_of, test_accuracy
from sparseflow.paper.judging import (
    POINTS,
    Bound,
    Claim,
    Compare,
    Judgement,
    Measure,
    Sample,
    Test,
    log,
)
from sparseflow.plotting.formats import percent
from sparseflow.report.results import Results, RunValues

RESTORED = 2.0
"""Factor within which a signal counts as that of the dense network."""


def _sparsity(results: Results) -> float:
    """Sparsity that was measured at initialisation and is nearest to the runs'; 0 without one."""
    sparse = {s.sparsity for s in results.at_start if s.sparsity}
    return min(sparse, key=lambda s: abs(s - (1 - results.density)), default=0.0)


def _signal(init: str, *, dense: bool = False) -> Measure:
    """Output of networks at initialisation, as sparse as the runs or dense."""

    def measure(results: Results) -> Sample:
        at = _sparsity(results)
        # Nothing is masked at sparsity 0, and every neuron has its full fan-in.
        wanted = (init, 0.0 if dense else at)
        chosen = [s for s in results.at_start if at and (s.init, s.sparsity) == wanted]
        return gather(init, ((s.seed, log(s.signal_noise)) for s in chosen))

    return measure


def _signal_test(other: Measure, bound: Bound) -> Compare:
    def window(results: Results) -> str:
        return f"step 0, {percent(_sparsity(results))} sparse"

    return Compare(window, _signal(FAN_IN), other, bound)


def _gradient(recipe: str, part: str) -> Measure:
    return of_runs(recipe, lambda run: log(getattr(run.start, part)), living=False)


def _largest(recipe: str) -> Measure:
    return of_starts(recipe, lambda spectrum: log(spectrum.largest))


def fewer(k: int, n: int, j: int, m: int) -> Estimate:
    """Share k/n minus share j/m with an interval made of their exact ones.

    With p and q the shares and (l, u) the exact interval of each, its arms are
    √((p − l_p)² + (u_q − q)²) below and √((u_p − p)² + (q − l_q)²) above
    (Newcombe 1998, method 10, with Clopper and Pearson's limits in the place of
    Wilson's, which makes it wider). It needs independent runs; a seed that both
    groups share makes it too wide, not too narrow.

    >>> found = fewer(5, 5, 0, 5)
    >>> found.value, round(found.low, 2), found.high
    (1.0, 0.26, 1.0)
    """
    p, q = proportion_interval(k, n), proportion_interval(j, m)
    value = p.value - q.value
    low = value - math.hypot(p.value - p.low, q.high - q.value)
    high = value + math.hypot(p.high - p.value, q.value - q.low)
    return Estimate(value, low, high, n + m)


def _deaths(method: str, recipe: str) -> Test:
    """More runs die with masked dense initialisation than with the paper's."""

    def test(results: Results) -> list[Judgement]:
        plain, aware = runs_of(results, recipe), runs_of(results, f"{recipe}+")
        if not plain or not aware:
            return []
        gap = fewer(_dead(plain), len(plain), _dead(aware), len(aware))
        ours = f"{_share(plain)} dead against {_share(aware)} with the paper's initialisation"
        return [Judgement(f"dead runs, {method}", ours, gap, Bound(low=0).judge(gap))]

    return test


def _dead(runs: list[RunValues]) -> int:
    return sum(run.dead for run in runs)


def _share(runs: list[RunValues]) -> str:
    exact = proportion_interval(_dead(runs), len(runs))
    low, high = f"{100 * exact.low:.0f}", f"{100 * exact.high:.0f}"
    return f"{_dead(runs)} of {len(runs)} [{low}–{high} %]"


_FIGURE_1 = (
    "Figure 1: at high sparsity the output's standard deviation nearly vanishes with masked "
    "dense initialisation, and keeps its size with the paper's."
)
_SIGNAL = "Standard deviation of the output on noise; He scale 2, masks uneven over neurons."
_LARGEST = "Largest Hessian eigenvalue over the active parameters."

CLAIMS = (
    Claim(
        "signal-start",
        "Initialisation by each neuron's own fan-in raises the signal of a sparse network at "
        "step 0.",
        _FIGURE_1,
        (_signal_test(_signal(MASKED_DENSE), Bound(low=1)),),
        "start-signal",
        _SIGNAL,
    ),
    Claim(
        "signal-dense",
        "It restores that signal: the output is about as large as a dense network's.",
        _FIGURE_1,
        (_signal_test(_signal(FAN_IN, dense=True), Bound(1 / RESTORED, RESTORED)),),
        "start-signal",
        f"{_SIGNAL} Restored: within a factor of {RESTORED:g}.",
    ),
    Claim(
        "gradient-start",
        "It raises the gradient norm at step 0 over that of masked dense initialisation.",
        "Figure 2. Authors' code: 0.14–0.17 against 0.031–0.034; over kernels alone 0.07–0.13 "
        "against 0.0001–0.0004.",
        tuple(
            Compare(window, _gradient("shuffled+", part), _gradient("shuffled", part), Bound(low=1))
            for window, part in (
                ("step 0, all active parameters", "total"),
                ("step 0, kernels alone", "kernels"),
            )
        ),
        "start-norm",
        "Shuffled mask; seeds share mask and random draws. Biases dominate the norm of a badly "
        "initialised network, so kernels are judged apart.",
    ),
    Claim(
        "init-trains",
        "On a shuffled mask it decides whether a network trains at all: with masked dense "
        "initialisation it stays at chance.",
        "Authors' code: 11.35 % throughout with masked dense initialisation (static, SET, RigL); "
        "90.7–94.6 %, 97.8 % and 97.8–98.1 % with the paper's.",
        (_deaths("static mask", "shuffled"), _deaths("SET", "set"), _deaths("RigL", "rigl")),
        "accuracy",
        "Shares of dead runs with exact binomial intervals. Their difference has the interval "
        "made of the two by adding the squares of their arms; it must exclude zero.",
    ),
    Claim(
        "init-accuracy",
        "Where masked dense initialisation can train (on the ticket's mask), the paper's makes "
        "it surer and better.",
        "Authors' code, the ticket's mask: 98.04, 97.24 and 11.35 % with masked dense "
        "initialisation, 97.71 % with the paper's.",
        (
            _deaths("the ticket's mask", "scratch"),
            *(
                Compare(
                    f"test set, living runs, {method}",
                    test_accuracy(f"{recipe}+"),
                    test_accuracy(recipe),
                    Bound(low=0),
                    POINTS,
                )
                for method, recipe in (
                    ("the ticket's mask", "scratch"),
                    ("shuffled static mask", "shuffled"),
                    ("SET", "set"),
                    ("RigL", "rigl"),
                )
            ),
        ),
        "accuracy",
        "Dead runs are counted in the first window and left out of the others.",
    ),
    Claim(
        "start-flat",
        "At initialisation the loss of a masked dense sparse network, and of a ticket, is flatter "
        "than a dense network's.",
        "Authors' code, largest Hessian eigenvalue: dense 3.9, shuffled 0.11, ticket 0.12.",
        tuple(
            Compare(window, _largest(recipe), _largest("dense"), Bound(high=1))
            for window, recipe in (
                ("step 0, shuffled mask, masked dense", "shuffled"),
                ("step 0, ticket", "lottery"),
            )
        ),
        "curvature-start",
        _LARGEST,
    ),
    Claim(
        "start-curvature",
        "The paper's initialisation brings some of the curvature back.",
        "Authors' code, largest Hessian eigenvalue: shuffled 0.11, shuffled+ 0.57.",
        (
            Compare(
                "step 0, shuffled mask",
                _largest("shuffled+"),
                _largest("shuffled"),
                Bound(low=1),
            ),
        ),
        "curvature-start",
        _LARGEST,
    ),
)
"""Claims about initialisation."""
