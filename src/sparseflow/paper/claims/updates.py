"""What one mask update does: gradient norm and negative curvature, in training and tried out.

In training, the norm is measured just before and after each update. Tried out,
each rule updates one and the same network. A run counts once: draws are
averaged first, then the steps of a run, and the interval is over runs.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable

from sparseflow.paper.claims.measures import dead_runs, gather, of_runs
from sparseflow.paper.judging import (
    CHANGE,
    NUMBER,
    Alone,
    Bound,
    Claim,
    Compare,
    Measure,
    Sample,
    Scale,
    Test,
    log,
    minus_each,
)
from sparseflow.plotting.vocabulary import RULES, parse_label
from sparseflow.report.results import Results, RunValues
from sparseflow.studies import Spectrum, Updates
from sparseflow.studies.evidence import of
from sparseflow.studies.update import Trial
from sparseflow.studies.values import Number

SLIGHT = 1.05
"""Factor up to which one update counts as not raising anything."""

FEW = 0.01
"""Share of the active parameters up to which no negative eigenvalues count as added."""

Change = Callable[[Spectrum, Trial], Number]
OTHERS = ("set", "rigl-inverted")


def norm_change(before: Spectrum, after: Trial) -> Number:
    """Log ratio of the gradient norms."""
    return _log_ratio(after.spectrum.norm, before.norm)


def count_change(before: Spectrum, after: Trial) -> Number:
    """How many more eigenvalues are negative, by the threshold of the network before."""
    if before.negative is None:
        return None
    return after.negative - before.negative * before.parameters


def own_count_change(before: Spectrum, after: Trial) -> Number:
    """The same, each network by the threshold of its own largest eigenvalue."""
    if before.negative is None or after.spectrum.negative is None:
        return None
    return (after.spectrum.negative - before.negative) * before.parameters


COUNTS: dict[str, Change] = {
    ", threshold of the network before": count_change,
    ", each by its own threshold": own_count_change,
}
"""Ways to count negative eigenvalues."""


def depth_change(before: Spectrum, after: Trial) -> Number:
    """Log ratio of the smallest eigenvalues; None unless both are negative."""
    if before.smallest is None or after.spectrum.smallest is None:
        return None
    return _log_ratio(-after.spectrum.smallest, -before.smallest)


def tried(rule: str, change: Change) -> Measure:
    """One value a run: what an update by a rule changes, averaged over draws, then over steps."""

    def measure(results: Results) -> Sample:
        dead = dead_runs(results)
        steps: dict[tuple[str, str], list[Number]] = defaultdict(list)
        gone: set[tuple[str, str]] = set()
        for updates in of(results, Updates):
            place = parse_label(updates.label)
            run = place.recipe, place.seed
            changes = [change(updates.before, t) for t in updates.after if t.rule == rule]
            if run in dead:
                gone.add(run)
            elif changes:
                steps[run].append(_mean(changes))
        values = ((" ".join(run), _mean(each)) for run, each in steps.items())
        return gather(RULES.get(rule, rule), values, dead=len(gone))

    return measure


def recorded(recipe: str, *, half: bool) -> Measure:
    """One value a run: median log change of the gradient norm over its updates."""

    def value(run: RunValues) -> Number:
        if run.updates is None:
            return None
        columns = zip(run.updates.step, run.updates.before, run.updates.after, strict=True)
        logs = [
            _log_ratio(after, before)
            for step, before, after in columns
            if not half or 2 * step <= run.steps
        ]
        finite = [v for v in logs if v is not None]
        return statistics.median(finite) if finite else None

    return of_runs(recipe, value)


def _mean(values: list[Number]) -> Number:
    finite = [v for v in values if v is not None]
    return statistics.fmean(finite) if finite else None


def _log_ratio(a: Number, b: Number) -> Number:
    x, y = log(a), log(b)
    return None if x is None or y is None else x - y


def _recorded(rule: str, bound: Bound) -> tuple[Test, ...]:
    return tuple(
        Alone(f"{RULES[rule]}, {window}", recorded(f"{rule}+", half=half), bound, CHANGE)
        for window, half in (("first half of training", True), ("whole run", False))
    )


def _tried(
    rule: str,
    change: Change,
    bound: Bound | Callable[[Results], Bound],
    scale: Scale = CHANGE,
    how: str = "",
) -> Test:
    window = f"{RULES[rule]}, tried on the same networks{how}"
    return Alone(window, tried(rule, change), bound, scale)


def _beyond(change: Change, bound: Bound, scale: Scale = CHANGE, how: str = "") -> Test:
    """RigL beyond SET, which drops the same and grows at random.

    The rule that also drops at random wrecks the network (its loss rises
    many times over): it is in the figure, and no measure of RigL.
    """

    def measure(results: Results) -> Sample:
        return minus_each(tried("rigl", change)(results), tried("set", change)(results))

    return Alone(f"RigL beyond SET, tried on the same networks{how}", measure, bound, scale)


def _few(results: Results) -> Bound:
    active = [updates.before.parameters for updates in of(results, Updates)]
    return Bound(high=FEW * statistics.mean(active) if active else 0.0)


_NEGATIVE = (
    "Negative: below −10⁻³ times the largest eigenvalue, which an update changes, so the count is "
    "judged by the threshold of the network before the update and by each network's own."
)
_RECORDED = "In training: median change over a run's updates, then the mean over living runs."
_TRIED = (
    "Tried: every rule updates the same networks (rigl+); draws, then steps of a run are averaged."
)
_RISE, _MORE, _NO_RISE = Bound(low=1), Bound(low=0), Bound(high=SLIGHT)

CLAIMS = (
    Claim(
        "update-norm",
        "RigL's mask updates raise the gradient norm.",
        "Figure 3.",
        (
            *_recorded("rigl", _RISE),
            Compare(
                "RigL beyond SET, first half of training",
                recorded("rigl+", half=True),
                recorded("set+", half=True),
                _RISE,
                CHANGE,
            ),
            _tried("rigl", norm_change, _RISE),
            _beyond(norm_change, _RISE),
        ),
        "updates",
        f"RigL grows where the gradient is largest, so some rise is by construction. {_RECORDED} "
        f"{_TRIED}",
    ),
    Claim(
        "update-norm-others",
        "The updates of SET and of RigL inverted do not.",
        "Figure 3.",
        (
            *(test for rule in OTHERS for test in _recorded(rule, _NO_RISE)),
            *(_tried(rule, norm_change, _NO_RISE) for rule in OTHERS),
        ),
        "updates",
        f"No rise: less than a factor of {SLIGHT:g}. {_RECORDED} {_TRIED}",
    ),
    Claim(
        "update-negative",
        "RigL's mask updates add negative eigenvalues to the Hessian.",
        "Figure 3.",
        tuple(
            test
            for how, change in COUNTS.items()
            for test in (
                _tried("rigl", change, _MORE, NUMBER, how),
                _beyond(change, _MORE, NUMBER, how),
            )
        ),
        "spectra",
        f"Change of their number. {_NEGATIVE} {_TRIED}",
    ),
    Claim(
        "update-negative-others",
        "The updates of SET and of RigL inverted add none.",
        "Figure 3.",
        tuple(
            _tried(rule, change, _few, NUMBER, how)
            for rule in OTHERS
            for how, change in COUNTS.items()
        ),
        "spectra",
        f"None: fewer than {100 * FEW:g} % of the active parameters. {_NEGATIVE} {_TRIED}",
    ),
    Claim(
        "update-depth",
        "RigL's mask updates make the smallest eigenvalue more negative.",
        "Figure 3.",
        (_tried("rigl", depth_change, _RISE), _beyond(depth_change, _RISE)),
        "spectra",
        f"Change of its size. {_TRIED}",
    ),
    Claim(
        "update-depth-others",
        "The updates of SET and of RigL inverted do not.",
        "Figure 3.",
        tuple(_tried(rule, depth_change, _NO_RISE) for rule in OTHERS),
        "spectra",
        f"Change of its size; none: less than a factor of {SLIGHT:g}. {_TRIED}",
    ),
)
"""Claims about mask updates."""
