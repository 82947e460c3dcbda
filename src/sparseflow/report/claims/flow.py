"""Gradient flow in training: RigL's, and the ticket's, each in every window."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sparseflow.report.claims.choose import Value, gather, of_runs, runs_of
from sparseflow.report.claims.judge import Bound, Claim, Judgement, Sample, against, alone, log
from sparseflow.report.results import FlowCurve, Number, Results

LEVELS = 25
"""Losses at which two runs are compared, evenly spaced on a log scale."""

MUCH = 1.25
"""Factor up to which a gradient norm counts as no better than another."""

Curve = tuple[Sequence[Number], Sequence[Number]]
"""Loss and gradient norm at each measured step."""


def flow_claims(results: Results) -> list[Claim]:
    """Claims about the gradient norm in training."""
    same = "the same mask, masked dense initialisation (scratch)"
    aware = "the same mask, the paper's initialisation (scratch+)"
    return [
        dynamic(results),
        ticket(results, "ticket-flow", "scratch", same),
        ticket(results, "ticket-flow-aware", "scratch+", aware),
    ]


def dynamic(results: Results) -> Claim:
    """Is RigL's gradient norm above that of the static mask it starts from?"""
    return Claim(
        "rigl-flow",
        "RigL's gradient norm in training lies above that of the static network with the same "
        "start.",
        "Figure 2. Authors' code, mean over steps 0–1,000: 1.18–1.31 against 0.53–0.80.",
        tuple(_in_training(results, "rigl+", "shuffled+", Bound(low=1))),
        "flow",
        f"Both with the paper's initialisation; seeds share mask and start. {EQUAL_LOSS}",
    )


def ticket(results: Results, name: str, other: str, words: str) -> Claim:
    """Is a ticket's gradient norm no better than scratch's?"""
    bound = Bound(high=MUCH)
    return Claim(
        name,
        f"A ticket's gradient norm is no better than that of {words}.",
        "Figure 2: lottery tickets do not improve gradient flow. Authors' code, ticket: 0.04 at "
        "step 0 (kernels 0.003), 0.18–0.32 over steps 0–1,000; "
        + ("scratch: 0.03, 0.03–0.12." if other == "scratch" else "scratch+: 0.35, 0.53."),
        (
            *_at_start(results, "lottery", other, bound),
            *_in_training(results, "lottery", other, bound),
        ),
        "flow",
        f"No better: at most {MUCH:g} times as large. Seeds share mask and parent; dead runs "
        f"enter at step 0 only. {EQUAL_LOSS}",
    )


EQUAL_LOSS = (
    f"Equal training loss: mean log ratio over {LEVELS} losses that both runs reach, where each "
    "first does."
)


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


def _at_start(results: Results, a: str, b: str, bound: Bound) -> list[Judgement]:
    def judge(window: str, value: Value) -> list[Judgement]:
        own, other = (of_runs(results, name, value, living=False) for name in (a, b))
        return against(window, own, other, bound)

    return [
        *judge("step 0", lambda run: log(run.start.total)),
        *judge("step 0, kernels alone", lambda run: log(run.start.kernels)),
    ]


def _in_training(results: Results, a: str, b: str, bound: Bound) -> list[Judgement]:
    def judge(window: str, value: Value) -> list[Judgement]:
        own, other = (of_runs(results, name, value) for name in (a, b))
        return against(window, own, other, bound)

    window = results.main[0].window if results.main else 0
    return [
        *judge(f"steps 0–{window:,}", lambda run: log(run.early.total)),
        *judge("whole run", lambda run: log(run.whole.total)),
        *alone("at equal training loss", at_equal_loss(results, a, b), bound),
    ]


def at_equal_loss(results: Results, a: str, b: str) -> Sample:
    """Mean log ratio of each pair of living runs that share a seed."""
    first, second = runs_of(results, a), {run.seed: run for run in runs_of(results, b)}
    pairs = [(run, second[run.seed]) for run in first if run.seed in second]
    living = [(x, y) for x, y in pairs if not (x.dead or y.dead)]
    found = ((x.seed, equal_loss(_curve(x.flow), _curve(y.flow))) for x, y in living)
    return gather(f"{a} or {b}", found, dead=len(pairs) - len(living))


def _curve(flow: FlowCurve) -> Curve:
    return flow.loss, flow.total
