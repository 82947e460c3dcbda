"""What one mask update does: gradient norm and negative curvature, in training and tried out.

In training, the norm is measured just before and after each update. Tried out,
each rule updates one and the same network. A run counts once: draws are
averaged first, then the steps of a run, and the interval is over runs.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable

from sparseflow.report.claims.choose import dead_labels, gather, of_runs
from sparseflow.report.claims.judge import (
    CHANGE,
    NUMBER,
    Bound,
    Claim,
    Judgement,
    Sample,
    Scale,
    against,
    alone,
    log,
    minus_each,
)
from sparseflow.report.results import Number, Results, RunFigures, Spectrum, Updates
from sparseflow.report.vocabulary import RULES, place_of
from sparseflow.studies.figures import Trial

SLIGHT = 1.05
"""Factor up to which one update counts as not raising anything."""

FEW = 0.01
"""Share of the active parameters up to which no negative eigenvalues count as added."""

Change = Callable[[Spectrum, Trial], Number]
OTHERS = ("set", "rigl-inverted")


def update_claims(results: Results) -> list[Claim]:
    """Claims about mask updates."""
    return [
        rigl_raises(results),
        others_do_not_raise(results),
        rigl_bends(results),
        others_do_not_bend(results),
        rigl_deepens(results),
        others_do_not_deepen(results),
    ]


def rigl_raises(results: Results) -> Claim:
    """Do RigL's updates raise the gradient norm?"""
    return Claim(
        "update-norm",
        "RigL's mask updates raise the gradient norm.",
        "Figure 3.",
        (
            *_recorded(results, "rigl+", Bound(low=1)),
            *_beyond_set(results),
            *_tried(results, "rigl", norm_change, Bound(low=1)),
            *_beyond(results, norm_change, Bound(low=1)),
        ),
        "updates",
        f"RigL grows where the gradient is largest, so some rise is by construction. {_RECORDED} "
        f"{_TRIED}",
    )


def others_do_not_raise(results: Results) -> Claim:
    """Do SET's and the inverted rule's leave it alone?"""
    bound = Bound(high=SLIGHT)
    recorded = [_recorded(results, f"{rule}+", bound) for rule in OTHERS]
    tried = [_tried(results, rule, norm_change, bound) for rule in OTHERS]
    return Claim(
        "update-norm-others",
        "The updates of SET and of RigL inverted do not.",
        "Figure 3.",
        tuple(j for found in recorded + tried for j in found),
        "updates",
        f"No rise: less than a factor of {SLIGHT:g}. {_RECORDED} {_TRIED}",
    )


def rigl_bends(results: Results) -> Claim:
    """Do RigL's updates open directions of negative curvature?"""
    return Claim(
        "update-negative",
        "RigL's mask updates add negative eigenvalues to the Hessian.",
        "Figure 3.",
        tuple(
            judgement
            for threshold, change in COUNTS.items()
            for judgement in (
                *_tried(results, "rigl", change, Bound(low=0), NUMBER, threshold),
                *_beyond(results, change, Bound(low=0), NUMBER, threshold),
            )
        ),
        "spectra",
        f"Change of their number. {_NEGATIVE} {_TRIED}",
    )


def others_do_not_bend(results: Results) -> Claim:
    """Do SET's and the inverted rule's not?"""
    active = [updates.before.parameters for updates in results.updates]
    bound = Bound(high=FEW * statistics.mean(active) if active else 0.0)
    found = [
        _tried(results, rule, change, bound, NUMBER, threshold)
        for rule in OTHERS
        for threshold, change in COUNTS.items()
    ]
    return Claim(
        "update-negative-others",
        "The updates of SET and of RigL inverted add none.",
        "Figure 3.",
        tuple(judgement for each in found for judgement in each),
        "spectra",
        f"None: fewer than {100 * FEW:g} % of the active parameters. {_NEGATIVE} {_TRIED}",
    )


def rigl_deepens(results: Results) -> Claim:
    """Do RigL's updates make the most negative eigenvalue more so?"""
    return Claim(
        "update-depth",
        "RigL's mask updates make the smallest eigenvalue more negative.",
        "Figure 3.",
        (
            *_tried(results, "rigl", depth_change, Bound(low=1)),
            *_beyond(results, depth_change, Bound(low=1)),
        ),
        "spectra",
        f"Change of its size. {_TRIED}",
    )


def others_do_not_deepen(results: Results) -> Claim:
    """Do SET's and the inverted rule's not?"""
    found = [_tried(results, rule, depth_change, Bound(high=SLIGHT)) for rule in OTHERS]
    return Claim(
        "update-depth-others",
        "The updates of SET and of RigL inverted do not.",
        "Figure 3.",
        tuple(judgement for each in found for judgement in each),
        "spectra",
        f"Change of its size; none: less than a factor of {SLIGHT:g}. {_TRIED}",
    )


_NEGATIVE = (
    "Negative: below −10⁻³ times the largest eigenvalue, which an update changes, so the count is "
    "judged by the threshold of the network before the update and by each network's own."
)
_RECORDED = "In training: median change over a run's updates, then the mean over living runs."
_TRIED = (
    "Tried: every rule updates the same networks (rigl+); draws, then steps of a run are averaged."
)


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


def tried(results: Results, rule: str, change: Change) -> Sample:
    """One value a run: what an update by a rule changes, averaged over draws, then over steps."""
    dead = dead_labels(results)
    steps: dict[tuple[str, str], list[Number]] = defaultdict(list)
    gone: set[tuple[str, str]] = set()
    for updates in results.updates:
        place = place_of(updates.label)
        run = place.recipe, place.seed
        changes = _draws(updates, rule, change)
        if run in dead:
            gone.add(run)
        elif changes:
            steps[run].append(_mean(changes))
    values = ((" ".join(run), _mean(found)) for run, found in steps.items())
    return gather(RULES.get(rule, rule), values, dead=len(gone))


def recorded(results: Results, recipe: str, *, half: bool) -> Sample:
    """One value a run: median log change of the gradient norm over its updates."""

    def value(run: RunFigures) -> Number:
        if run.updates is None:
            return None
        columns = zip(run.updates.step, run.updates.before, run.updates.after, strict=True)
        logs = [
            _log_ratio(after, before)
            for step, before, after in columns
            if not half or 2 * step <= run.steps
        ]
        known = [v for v in logs if v is not None]
        return statistics.median(known) if known else None

    return of_runs(results, recipe, value)


def _draws(updates: Updates, rule: str, change: Change) -> list[Number]:
    return [change(updates.before, t) for t in updates.after if t.rule == rule]


def _mean(values: list[Number]) -> Number:
    known = [v for v in values if v is not None]
    return statistics.fmean(known) if known else None


def _log_ratio(a: Number, b: Number) -> Number:
    x, y = log(a), log(b)
    return None if x is None or y is None else x - y


def _recorded(results: Results, recipe: str, bound: Bound) -> list[Judgement]:
    name = RULES[recipe.removesuffix("+")]
    windows = {"first half of training": True, "whole run": False}
    return [
        judgement
        for window, half in windows.items()
        for judgement in alone(
            f"{name}, {window}", recorded(results, recipe, half=half), bound, scale=CHANGE
        )
    ]


def _beyond_set(results: Results) -> list[Judgement]:
    """RigL's updates beside SET's in training, seed by seed."""
    rigl, other = (recorded(results, recipe, half=True) for recipe in ("rigl+", "set+"))
    window = "RigL beyond SET, first half of training"
    return against(window, rigl, other, Bound(low=1), scale=CHANGE)


def _tried(
    results: Results,
    rule: str,
    change: Change,
    bound: Bound,
    scale: Scale = CHANGE,
    how: str = "",
) -> list[Judgement]:
    window = f"{RULES[rule]}, tried on the same networks{how}"
    return alone(window, tried(results, rule, change), bound, scale=scale)


def _beyond(
    results: Results, change: Change, bound: Bound, scale: Scale = CHANGE, how: str = ""
) -> list[Judgement]:
    """RigL beyond SET, which drops the same and grows at random.

    The rule that also drops at random wrecks the network (its loss rises
    many times over): it is in the figure, and no measure of RigL.
    """
    both = minus_each(tried(results, "rigl", change), tried(results, "set", change))
    window = f"RigL beyond SET, tried on the same networks{how}"
    return alone(window, both, bound, scale=scale)
