"""Gradient flow in training: RigL's, and the ticket's, each in every window."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sparseflow.paper.claims.measures import gather, of_runs, runs_of
from sparseflow.paper.judging import Alone, Bound, Claim, Compare, Measure, Sample, Test, log
from sparseflow.report.results import FlowCurve, Results
from sparseflow.report.summary import early_window
from sparseflow.studies.values import Number

LEVELS = 25
"""Losses at which two runs are compared, evenly spaced on a log scale."""

MUCH = 1.25
"""Factor up to which a gradient norm counts as no better than another."""

Curve = tuple[Sequence[Number], Sequence[Number]]
"""Loss and gradient norm at each measured step."""


def equal_loss(a: Curve, b: Curve, *, levels: int = LEVELS) -> float | None:
    """Mean log ratio of two runs' gradient norms at equal loss, on the way down.

    The losses are spaced evenly on a log scale, from the smaller of the two
    first losses down to the larger of the two smallest: both runs pass every
    one of them. A run's norm at a loss is that of its first crossing, linear
    between measurements in log loss and log norm.

    Args:
        a: loss and norm of one run, step by step; what is missing or not
            positive is skipped.
        b: of the other.
        levels: number of losses.

    Returns:
        Mean of log(norm of a / norm of b); None if no loss is common.

    Example:
        >>> round(equal_loss(([1.0, 0.1], [2.0, 2.0]), ([1.0, 0.01], [1.0, 1.0])), 4)
        0.6931
    """
    first, second = _clean(a), _clean(b)
    if not len(first) or not len(second):
        return None
    top = min(first[0, 0], second[0, 0])
    bottom = max(first[:, 0].min(), second[:, 0].min())
    if not bottom < top:
        return None
    grid = np.linspace(top, bottom, levels)
    return float(np.mean(_norm_at(first, grid) - _norm_at(second, grid)))


def _clean(curve: Curve) -> np.ndarray:
    """Log loss and log norm [points, 2]."""
    logs = [(log(x), log(y)) for x, y in zip(*curve, strict=True)]
    return np.array([pair for pair in logs if None not in pair], dtype=np.float64)


def _norm_at(curve: np.ndarray, grid: np.ndarray) -> np.ndarray:
    loss, norm = curve.T
    # The running minimum falls first below a level where the loss itself does.
    least = np.minimum.accumulate(loss)
    at = np.searchsorted(-least, -grid, side="left")
    before = np.maximum(at - 1, 0)
    drop = loss[before] - loss[at]
    share = np.where(at == before, 1.0, (loss[before] - grid) / np.where(drop == 0, 1.0, drop))
    return norm[before] + share * (norm[at] - norm[before])


def at_equal_loss(a: str, b: str) -> Measure:
    """Mean log ratio of each pair of living runs that share a seed."""

    def measure(results: Results) -> Sample:
        first, second = runs_of(results, a), {run.seed: run for run in runs_of(results, b)}
        pairs = [(run, second[run.seed]) for run in first if run.seed in second]
        living = [(x, y) for x, y in pairs if not (x.dead or y.dead)]
        ratios = ((x.seed, equal_loss(_curve(x.flow), _curve(y.flow))) for x, y in living)
        return gather(f"{a} or {b}", ratios, dead=len(pairs) - len(living))

    return measure


def _curve(flow: FlowCurve) -> Curve:
    return flow.loss, flow.total


def _norm(recipe: str, when: str, part: str = "total") -> Measure:
    def value(run: object) -> Number:
        return log(getattr(getattr(run, when), part))

    return of_runs(recipe, value, living=when != "start")


def _at_start(a: str, b: str, bound: Bound) -> tuple[Test, ...]:
    return tuple(
        Compare(words, _norm(a, "start", part), _norm(b, "start", part), bound)
        for words, part in (("step 0", "total"), ("step 0, kernels alone", "kernels"))
    )


def _in_training(a: str, b: str, bound: Bound) -> tuple[Test, ...]:
    def first_steps(results: Results) -> str:
        return early_window(results.main)

    return (
        Compare(first_steps, _norm(a, "early"), _norm(b, "early"), bound),
        Compare("whole run", _norm(a, "whole"), _norm(b, "whole"), bound),
        Alone("at equal training loss", at_equal_loss(a, b), bound),
    )


_EQUAL_LOSS = (
    f"Equal training loss: mean log ratio over {LEVELS} losses that both runs reach, where each "
    "first does."
)


def _ticket(name: str, other: str, words: str, code: str) -> Claim:
    bound = Bound(high=MUCH)
    return Claim(
        name,
        f"A ticket's gradient norm is no better than that of {words}.",
        "Figure 2: lottery tickets do not improve gradient flow. Authors' code, ticket: 0.04 at "
        f"step 0 (kernels 0.003), 0.18–0.32 over steps 0–1,000; {code}",
        (*_at_start("lottery", other, bound), *_in_training("lottery", other, bound)),
        "flow",
        f"No better: at most {MUCH:g} times as large. Seeds share mask and parent; dead runs "
        f"enter at step 0 only. {_EQUAL_LOSS}",
    )


CLAIMS = (
    Claim(
        "rigl-flow",
        "RigL's gradient norm in training lies above that of the static network with the same "
        "start.",
        "Figure 2. Authors' code, mean over steps 0–1,000: 1.18–1.31 against 0.53–0.80.",
        _in_training("rigl+", "shuffled+", Bound(low=1)),
        "flow",
        f"Both with the paper's initialisation; seeds share mask and start. {_EQUAL_LOSS}",
    ),
    _ticket(
        "ticket-flow",
        "scratch",
        "the same mask, masked dense initialisation (scratch)",
        "scratch: 0.03, 0.03–0.12.",
    ),
    _ticket(
        "ticket-flow-aware",
        "scratch+",
        "the same mask, the paper's initialisation (scratch+)",
        "scratch+: 0.35, 0.53.",
    ),
)
"""Claims about the gradient norm in training."""
