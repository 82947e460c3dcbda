"""What solutions compute: disagreement and ensembles."""

from __future__ import annotations

import math

import numpy as np

from sparseflow.measure.statistics import pair_difference
from sparseflow.report.claims.choose import gather
from sparseflow.report.claims.judge import (
    NUMBER,
    POINTS,
    Bound,
    Claim,
    Judgement,
    Sample,
    against,
    log,
    normal,
)
from sparseflow.report.results import Agreement, Results
from sparseflow.report.text import short
from sparseflow.report.vocabulary import GROUPS
from sparseflow.studies.figures import GroupFigures

PRUNED = "prune"
TICKETS = "lottery:orders"
SCRATCH = ("scratch:orders", "scratch:inits")


def function_claims(results: Results) -> list[Claim]:
    """Claims about what the solutions compute."""
    return [
        near_pruned(results),
        relearned(results),
        ticket_ensembles(results),
        ensembles(
            results,
            "scratch-ensembles",
            "Ensembles of scratch solutions gain more than the tickets'.",
            "Published: 97.04 % alone, 98.00 % together; 97.19 and 98.43 % from different "
            "initialisations; tickets 98.52 and 98.58 %.",
            SCRATCH,
        ),
        ensembles(
            results,
            "dynamic-ensembles",
            "Ensembles of RigL+ and SET+ solutions gain more than the tickets'.",
            "Not in the paper.",
            ("rigl+", "set+"),
        ),
    ]


def near_pruned(results: Results) -> Claim:
    """Do tickets compute what the pruned network computes?"""
    ticket = with_reference(results.agreement, TICKETS)
    judgements: list[Judgement] = []
    for name in (PRUNED, *SCRATCH):
        other = with_reference(results.agreement, name)
        window = f"test set, against {GROUPS[name]}"
        judgements += against(window, ticket, other, Bound(high=1), together=False)
    return Claim(
        "ticket-agreement",
        "Tickets disagree less with the pruned solution that they came from than other pruned "
        "networks, or scratch, do.",
        "Published disagreement with pruned: tickets 0.0089, other pruned 0.0197, scratch 0.0278.",
        tuple(judgements),
        "disagreement",
        f"Share of test images. {_ONE_PARENT}",
    )


def relearned(results: Results) -> Claim:
    """Do children of one pruned network agree more than pruned networks do?"""
    judgements: list[Judgement] = []
    other = within(results.agreement, PRUNED)
    for words, name in (("tickets", TICKETS), ("prune restarts", "prune-restart:orders")):
        own = within(results.agreement, name)
        if own is None or other is None:
            continue
        found = pair_difference(own, other)
        left, right = _mean(own), _mean(other)
        ours = (
            f"{short(left)} against {short(right)}: {NUMBER.words(found)}, "
            f"{len(own)} and {len(other)} runs"
        )
        judgements.append(Judgement(f"test set, {words}", ours, found, Bound(high=0).judge(found)))
    return Claim(
        "ticket-relearns",
        "Tickets, and the pruned solution trained again, learn one function again: they disagree "
        "less with each other than different pruned networks do.",
        "Published disagreement: tickets 0.0043, prune restarts 0.0027, different pruned 0.0214.",
        tuple(judgements),
        "disagreement",
        f"Means over pairs; the interval knows that pairs share runs. {_ONE_PARENT}",
    )


def ticket_ensembles(results: Results) -> Claim:
    """Do tickets' ensembles gain less than those of different pruned networks?"""
    return Claim(
        "ticket-ensembles",
        "Ensembles of tickets gain little: less than those of different pruned networks.",
        "Published: tickets 98.52 % alone, 98.58 % together; different pruned 98.30 and 99.07 %.",
        tuple(_gains(results.agreement, PRUNED, Bound(high=0), TICKETS)),
        "disagreement",
        _TEST_SET,
    )


def ensembles(
    results: Results, name: str, sentence: str, paper: str, groups: tuple[str, ...]
) -> Claim:
    """Do the ensembles of some groups gain more than the tickets'?"""
    found = [_gains(results.agreement, TICKETS, Bound(low=0), group) for group in groups]
    judgements = tuple(judgement for each in found for judgement in each)
    return Claim(name, sentence, paper, judgements, "disagreement", _TEST_SET)


_ONE_PARENT = (
    "Tickets, restarts and scratch are children of one pruned network: the intervals are over "
    "data orders (and initialisations), not over parents. Dead runs are left out and counted."
)
_TEST_SET = (
    "Gain: accuracy of the ensemble less the mean of its members. One ensemble a group, so the "
    "interval is over test images only."
)


def with_reference(agreement: Agreement | None, name: str) -> Sample:
    """Log of the disagreement of each living member with the reference, the latter itself apart."""
    found = _group(agreement, name)
    if agreement is None or found is None:
        return Sample(name)
    members = [m for m in found.members if m.label != agreement.labels[-1]]
    living = [m for m in members if not m.dead]
    pairs = ((m.label, log(m.reference)) for m in living)
    return gather(GROUPS.get(name, name), pairs, dead=len(members) - len(living))


def within(agreement: Agreement | None, name: str) -> np.ndarray | None:
    """Disagreement between the living members of a group [runs, runs]; None for fewer than two."""
    if agreement is None:
        return None
    start = 0
    for group in agreement.groups:
        if group.name == name:
            kept = [start + i for i, m in enumerate(group.members) if not m.dead]
            block = [[agreement.disagreement[i][j] for j in kept] for i in kept]
            matrix = np.array(block, dtype=np.float64)
            return matrix if len(kept) > 1 and np.isfinite(matrix).all() else None
        start += len(group.members)
    return None


def _group(agreement: Agreement | None, name: str) -> GroupFigures | None:
    groups = agreement.groups if agreement else ()
    return next((group for group in groups if group.name == name), None)


def _mean(matrix: np.ndarray) -> float:
    return float(matrix[np.triu_indices(len(matrix), 1)].mean())


def _gains(agreement: Agreement | None, base: str, bound: Bound, name: str) -> list[Judgement]:
    """Gain of one group's ensemble minus that of the group it is held against."""
    groups = [_group(agreement, n) for n in (name, base)]
    pair = [group.ensemble for group in groups if group is not None]
    own, other = pair if len(pair) == 2 else (None, None)
    if own is None or other is None or own.gain is None or other.gain is None:
        return []
    errors = [e for e in (own.error, other.error) if e is not None]
    error = math.hypot(*errors) if len(errors) == 2 else None
    found = normal(own.gain - other.gain, error, own.size + other.size)
    show = POINTS.number
    ours = (
        f"{show(own.gain)} against {show(other.gain)} points: {POINTS.words(found)}, ensembles of "
        f"{own.size} and {other.size}{_dead(groups)}"
    )
    window = f"test set, {GROUPS.get(name, name)} against {GROUPS.get(base, base)}"
    return [Judgement(window, ours, found, bound.judge(found))]


def _dead(groups: list[GroupFigures | None]) -> str:
    dead = [
        f"{sum(m.dead for m in group.members)} dead ({GROUPS.get(group.name, group.name)})"
        for group in groups
        if group is not None and any(m.dead for m in group.members)
    ]
    return f"; left out: {', '.join(dead)}" if dead else ""
