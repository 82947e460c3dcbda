"""What solutions compute: disagreement and ensembles."""

from __future__ import annotations

import math

import numpy as np

from sparseflow.measure.statistics import pair_difference
from sparseflow.paper.claims.measures import gather
from sparseflow.paper.judging import (
    NUMBER,
    POINTS,
    Bound,
    Claim,
    Compare,
    Judgement,
    Measure,
    Sample,
    Test,
    log,
    normal,
)
from sparseflow.plotting.formats import short
from sparseflow.plotting.vocabulary import group_label
from sparseflow.report.results import Results
from sparseflow.studies import Agreement
from sparseflow.studies.agreement import GroupRecord, blocks
from sparseflow.studies.evidence import first

PRUNED = "prune"
TICKETS = "lottery:orders"
RESTARTS = "prune-restart:orders"
SCRATCH = ("scratch:orders", "scratch:inits")


def with_reference(name: str) -> Measure:
    """Log of the disagreement of each living member with the reference, the latter itself apart."""

    def measure(results: Results) -> Sample:
        agreement, group = first(results, Agreement), _group(results, name)
        if agreement is None or group is None:
            return Sample(name)
        members = [m for m in group.members if m.label != agreement.labels[-1]]
        living = [m for m in members if not m.dead]
        pairs = ((m.label, log(m.reference)) for m in living)
        return gather(group_label(name), pairs, dead=len(members) - len(living))

    return measure


def within(results: Results, name: str) -> np.ndarray | None:
    """Disagreement between the living members of a group [runs, runs]; None for fewer than two."""
    agreement = first(results, Agreement)
    for group, alive in blocks(agreement) if agreement else ():
        if group.name == name and len(alive) > 1:
            table = np.array(agreement.disagreement, dtype=np.float64)  # type: ignore[union-attr]
            block = table[np.ix_(alive, alive)]
            return block if np.isfinite(block).all() else None
    return None


def _group(results: Results, name: str) -> GroupRecord | None:
    agreement = first(results, Agreement)
    groups = agreement.groups if agreement else ()
    return next((group for group in groups if group.name == name), None)


def _agree_more(words: str, name: str, other: str) -> Test:
    """Members of one group disagree less with each other than those of another do."""

    def test(results: Results) -> list[Judgement]:
        a, b = within(results, name), within(results, other)
        if a is None or b is None:
            return []
        gap = pair_difference(a, b)
        ours = (
            f"{short(_mean(a))} against {short(_mean(b))}: {NUMBER.words(gap)}, "
            f"{len(a)} and {len(b)} runs"
        )
        return [Judgement(f"test set, {words}", ours, gap, Bound(high=0).judge(gap))]

    return test


def _mean(matrix: np.ndarray) -> float:
    return float(matrix[np.triu_indices(len(matrix), 1)].mean())


def _gain(name: str, base: str, bound: Bound) -> Test:
    """Gain of one group's ensemble minus that of the group it is held against."""

    def test(results: Results) -> list[Judgement]:
        groups = [group for n in (name, base) if (group := _group(results, n))]
        ensembles = [group.ensemble for group in groups if group.ensemble]
        if len(ensembles) < 2:
            return []
        own, other = ensembles
        if own.gain is None or other.gain is None:
            return []
        errors = [e for e in (own.error, other.error) if e is not None]
        error = math.hypot(*errors) if len(errors) == 2 else None
        gap = normal(own.gain - other.gain, error, own.size + other.size)
        ours = (
            f"{POINTS.number(own.gain)} against {POINTS.number(other.gain)} points: "
            f"{POINTS.words(gap)}, ensembles of {own.size} and {other.size}{_dead(groups)}"
        )
        window = f"test set, {group_label(name)} against {group_label(base)}"
        return [Judgement(window, ours, gap, bound.judge(gap))]

    return test


def _dead(groups: list[GroupRecord]) -> str:
    dead = [
        f"{sum(m.dead for m in group.members)} dead ({group_label(group.name)})"
        for group in groups
        if any(m.dead for m in group.members)
    ]
    return f"; left out: {', '.join(dead)}" if dead else ""


_ONE_PARENT = (
    "Tickets, restarts and scratch are children of one pruned network: the intervals are over "
    "data orders (and initialisations), not over parents. Dead runs are left out and counted."
)
_TEST_SET = (
    "Gain: accuracy of the ensemble less the mean of its members. One ensemble a group, so the "
    "interval is over test images only."
)

CLAIMS = (
    Claim(
        "ticket-agreement",
        "Tickets disagree less with the pruned solution that they came from than other pruned "
        "networks, or scratch, do.",
        "Published disagreement with pruned: tickets 0.0089, other pruned 0.0197, scratch 0.0278.",
        tuple(
            Compare(
                f"test set, against {group_label(name)}",
                with_reference(TICKETS),
                with_reference(name),
                Bound(high=1),
                together=False,
            )
            for name in (PRUNED, *SCRATCH)
        ),
        "disagreement",
        f"Share of test images. {_ONE_PARENT}",
    ),
    Claim(
        "ticket-relearns",
        "Tickets, and the pruned solution trained again, learn one function again: they disagree "
        "less with each other than different pruned networks do.",
        "Published disagreement: tickets 0.0043, prune restarts 0.0027, different pruned 0.0214.",
        (_agree_more("tickets", TICKETS, PRUNED), _agree_more("prune restarts", RESTARTS, PRUNED)),
        "disagreement",
        f"Means over pairs; the interval knows that pairs share runs. {_ONE_PARENT}",
    ),
    Claim(
        "ticket-ensembles",
        "Ensembles of tickets gain little: less than those of different pruned networks.",
        "Published: tickets 98.52 % alone, 98.58 % together; different pruned 98.30 and 99.07 %.",
        (_gain(TICKETS, PRUNED, Bound(high=0)),),
        "disagreement",
        _TEST_SET,
    ),
    Claim(
        "scratch-ensembles",
        "Ensembles of scratch solutions gain more than the tickets'.",
        "Published: 97.04 % alone, 98.00 % together; 97.19 and 98.43 % from different "
        "initialisations; tickets 98.52 and 98.58 %.",
        tuple(_gain(name, TICKETS, Bound(low=0)) for name in SCRATCH),
        "disagreement",
        _TEST_SET,
    ),
    Claim(
        "dynamic-ensembles",
        "Ensembles of RigL+ and SET+ solutions gain more than the tickets'.",
        "Not in the paper.",
        tuple(_gain(name, TICKETS, Bound(low=0)) for name in ("rigl+", "set+")),
        "disagreement",
        _TEST_SET,
    ),
)
"""Claims about what the solutions compute."""
