"""What initialisation does: signal, gradient and curvature at step 0, and accuracy."""

from __future__ import annotations

import math

from sparseflow.measure.statistics import Estimate, proportion_interval
from sparseflow.report.claims.choose import gather, of_runs, of_starts, runs_of
from sparseflow.report.claims.judge import (
    POINTS,
    Bound,
    Claim,
    Judgement,
    Sample,
    against,
    log,
)
from sparseflow.report.results import Results, RunFigures
from sparseflow.report.text import percent
from sparseflow.report.vocabulary import FAN_IN, MASKED_DENSE

RESTORED = 2.0
"""Factor within which a signal counts as that of the dense network."""

DENSE = "dense"


def start_claims(results: Results) -> list[Claim]:
    """Claims about initialisation."""
    return [
        signal(results),
        restored(results),
        gradient(results),
        survival(results),
        living_accuracy(results),
        flatness(results),
        curvature(results),
    ]


def signal(results: Results) -> Claim:
    """Is the output of a sparse network larger with fan-in initialisation?"""
    return _signal_claim(
        results,
        "signal-start",
        "Initialisation by each neuron's own fan-in raises the signal of a sparse network at "
        "step 0.",
        MASKED_DENSE,
        Bound(low=1),
        "",
    )


def restored(results: Results) -> Claim:
    """Is it as large as a dense network's?"""
    return _signal_claim(
        results,
        "signal-dense",
        "It restores that signal: the output is about as large as a dense network's.",
        DENSE,
        Bound(1 / RESTORED, RESTORED),
        f" Restored: within a factor of {RESTORED:g}.",
    )


def gradient(results: Results) -> Claim:
    """Does it raise the gradient norm at step 0?"""

    def judge(window: str, kernels: bool) -> list[Judgement]:
        aware, plain = (
            of_runs(
                results,
                recipe,
                lambda r: log(r.start.kernels if kernels else r.start.total),
                living=False,
            )
            for recipe in ("shuffled+", "shuffled")
        )
        return against(window, aware, plain, Bound(low=1))

    return Claim(
        "gradient-start",
        "It raises the gradient norm at step 0 over that of masked dense initialisation.",
        "Figure 2. Authors' code: 0.14–0.17 against 0.031–0.034; over kernels alone 0.07–0.13 "
        "against 0.0001–0.0004.",
        (*judge("step 0, all active parameters", False), *judge("step 0, kernels alone", True)),
        "start-norm",
        "Shuffled mask; seeds share mask and random draws. Biases dominate the norm of a badly "
        "initialised network, so kernels are judged apart.",
    )


def survival(results: Results) -> Claim:
    """Do the runs that masked dense initialisation kills live with the paper's?"""
    pairs = (("static mask", "shuffled"), ("SET", "set"), ("RigL", "rigl"))
    return Claim(
        "init-trains",
        "On a shuffled mask it decides whether a network trains at all: with masked dense "
        "initialisation it stays at chance.",
        "Authors' code: 11.35 % throughout with masked dense initialisation (static, SET, RigL); "
        "90.7–94.6 %, 97.8 % and 97.8–98.1 % with the paper's.",
        tuple(j for method, name in pairs for j in _deaths(results, method, name)),
        "accuracy",
        "Shares of dead runs with exact binomial intervals. Their difference has the interval "
        "made of the two by adding the squares of their arms; it must exclude zero.",
    )


def living_accuracy(results: Results) -> Claim:
    """Is there a gain where masked dense initialisation can train?"""
    judgements = _deaths(results, "the ticket's mask", "scratch")
    methods = {
        "the ticket's mask": "scratch",
        "shuffled static mask": "shuffled",
        "SET": "set",
        "RigL": "rigl",
    }
    for method, name in methods.items():
        aware, plain = (of_runs(results, r, lambda r: r.test_accuracy) for r in (f"{name}+", name))
        window = f"test set, living runs, {method}"
        judgements += against(window, aware, plain, Bound(low=0), scale=POINTS)
    return Claim(
        "init-accuracy",
        "Where masked dense initialisation can train (on the ticket's mask), the paper's makes "
        "it surer and better.",
        "Authors' code, the ticket's mask: 98.04, 97.24 and 11.35 % with masked dense "
        "initialisation, 97.71 % with the paper's.",
        tuple(judgements),
        "accuracy",
        "Dead runs are counted in the first window and left out of the others.",
    )


def flatness(results: Results) -> Claim:
    """Are sparse networks flatter than dense ones at the start?"""
    dense = of_starts(results, "dense", lambda s: log(s.largest))
    judgements = [
        judgement
        for window, recipe in (
            ("step 0, shuffled mask, masked dense", "shuffled"),
            ("step 0, ticket", "lottery"),
        )
        for judgement in against(
            window,
            of_starts(results, recipe, lambda s: log(s.largest)),
            dense,
            Bound(high=1),
        )
    ]
    return Claim(
        "start-flat",
        "At initialisation the loss of a masked dense sparse network, and of a ticket, is flatter "
        "than a dense network's.",
        "Authors' code, largest Hessian eigenvalue: dense 3.9, shuffled 0.11, ticket 0.12.",
        tuple(judgements),
        "curvature-start",
        "Largest Hessian eigenvalue over the active parameters.",
    )


def curvature(results: Results) -> Claim:
    """Does the paper's initialisation bring curvature back?"""
    plain, aware = (
        of_starts(results, recipe, lambda s: log(s.largest)) for recipe in ("shuffled", "shuffled+")
    )
    window = "step 0, shuffled mask"
    return Claim(
        "start-curvature",
        "The paper's initialisation brings some of the curvature back.",
        "Authors' code, largest Hessian eigenvalue: shuffled 0.11, shuffled+ 0.57.",
        tuple(against(window, aware, plain, Bound(low=1))),
        "curvature-start",
        "Largest Hessian eigenvalue over the active parameters.",
    )


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


def _deaths(results: Results, method: str, recipe: str) -> list[Judgement]:
    plain, aware = runs_of(results, recipe), runs_of(results, f"{recipe}+")
    if not plain or not aware:
        return []
    found = fewer(_dead(plain), len(plain), _dead(aware), len(aware))
    ours = f"{_share(plain)} dead against {_share(aware)} with the paper's initialisation"
    return [Judgement(f"dead runs, {method}", ours, found, Bound(low=0).judge(found))]


def _dead(runs: list[RunFigures]) -> int:
    return sum(run.dead for run in runs)


def _share(runs: list[RunFigures]) -> str:
    found = proportion_interval(_dead(runs), len(runs))
    low, high = f"{100 * found.low:.0f}", f"{100 * found.high:.0f}"
    return f"{_dead(runs)} of {len(runs)} [{low}–{high} %]"


def _signal_claim(
    results: Results,
    name: str,
    sentence: str,
    other: str,
    bound: Bound,
    note: str,
) -> Claim:
    """Fan-in initialisation at the sparsity of the runs, against another or the dense network."""
    sparse = {s.sparsity for s in results.at_start if s.sparsity}
    judgements: list[Judgement] = []
    if sparse:
        at = min(sparse, key=lambda s: abs(s - (1 - results.density)))
        aware = _signal(results, FAN_IN, at)
        # Nothing is masked at sparsity 0, and every neuron has its full fan-in.
        beside = _signal(results, *((FAN_IN, 0.0) if other == DENSE else (other, at)))
        judgements = against(f"step 0, {percent(at)} sparse", aware, beside, bound)
    return Claim(
        name,
        sentence,
        "Figure 1: at high sparsity the output's standard deviation nearly vanishes with masked "
        "dense initialisation, and keeps its size with the paper's.",
        tuple(judgements),
        "start-signal",
        f"Standard deviation of the output on noise; He scale 2, masks uneven over neurons.{note}",
    )


def _signal(results: Results, init: str, sparsity: float) -> Sample:
    chosen = [s for s in results.at_start if (s.init, s.sparsity) == (init, sparsity)]
    return gather(init, ((s.seed, log(s.signal_noise)) for s in chosen))
