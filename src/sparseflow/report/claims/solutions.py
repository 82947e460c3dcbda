"""Where solutions lie: distances, barriers and accuracies beside the pruned network's."""

from __future__ import annotations

from dataclasses import replace

from sparseflow.report.claims.choose import of_lines, of_runs
from sparseflow.report.claims.judge import (
    NUMBER,
    POINTS,
    Bound,
    Claim,
    Judgement,
    against,
    alone,
    log,
)
from sparseflow.report.results import Results

CONNECTED = 2.0
"""Points of error under which two networks count as linearly connected (Frankle et al. 2020)."""

REACHED = 0.5
"""Points of accuracy up to which a network counts as no worse than another."""


def solution_claims(results: Results) -> list[Claim]:
    """Claims about where solutions lie and what they reach."""
    return [
        nearer(results, "start"),
        nearer(results, "end"),
        basin(results),
        behind(results, aligned=False),
        behind(results, aligned=True),
        rigl_basin(results),
        reached(results),
        dynamic_accuracy(results),
    ]


def nearer(results: Results, when: str) -> Claim:
    """Does a ticket start, or end, nearer to the pruned solution than scratch does?"""
    ticket, scratch = (
        of_lines(results, recipe, when, lambda line: log(line.distance))
        for recipe in ("lottery", "scratch")
    )
    verb, dead = (
        ("starts", "Dead runs enter: at the start nobody is dead.")
        if when == "start"
        else ("ends", "Dead scratch runs are left out and counted.")
    )
    return Claim(
        f"ticket-{when}",
        f"A ticket {verb} nearer to the pruned solution that it came from than scratch does.",
        "Figure 4.",
        tuple(against(f"{when} of training", ticket, scratch, Bound(high=1))),
        "map",
        f"L2 distance; each seed has its own pruned network, mask shared. {dead}",
    )


def basin(results: Results) -> Claim:
    """Is a ticket's end linearly connected to the pruned solution?"""
    return Claim(
        "ticket-basin",
        "No barrier separates a ticket's end from the pruned solution.",
        "Figure 5. Authors' code: the training loss goes 0.054 → 0.18 (middle) → 0.037.",
        tuple(_barrier(results, "lottery", Bound(high=CONNECTED))),
        "paths",
        _CONNECTED,
    )


def behind(results: Results, *, aligned: bool) -> Claim:
    """Does a barrier separate scratch's end from it, also once units are matched?"""
    return Claim(
        "scratch-barrier-aligned" if aligned else "scratch-barrier",
        "The barrier remains after scratch's units are permuted to match the pruned network's."
        if aligned
        else "A barrier separates scratch's end from the pruned solution.",
        "The paper did not look."
        if aligned
        else "Figure 5. Authors' code: the training loss goes 0.059 → 1.76 (middle) → 0.037.",
        tuple(_barrier(results, "scratch", Bound(low=CONNECTED), aligned=aligned)),
        "paths",
        f"{_CONNECTED} Dead runs are left out and counted.",
    )


def rigl_basin(results: Results) -> Claim:
    """Does RigL find a solution of its own?"""
    bound = Bound(low=CONNECTED)
    return Claim(
        "rigl-barrier",
        "A barrier separates RigL's end from the pruned solution, as it stands and after "
        "matching units.",
        "The paper shows no line from RigL.",
        (
            *_barrier(results, "rigl+", bound),
            *_barrier(results, "rigl+", bound, aligned=True),
        ),
        "paths",
        f"{_CONNECTED} RigL+ starts from a shuffled mask and other weights.",
    )


def reached(results: Results) -> Claim:
    """Does a ticket reach the pruned network's accuracy, and scratch not?"""
    pruned, ticket, scratch = (
        of_runs(results, recipe, lambda run: run.test_accuracy)
        for recipe in ("prune", "lottery", "scratch")
    )
    return Claim(
        "ticket-accuracy",
        "A ticket reaches the accuracy of the pruned solution; scratch on the same mask does not.",
        "Published: ticket 98.52 ± 0.02, scratch 97.04 ± 0.15, pruned 98.53 %.",
        (
            *against("test set, ticket", ticket, pruned, Bound(low=-REACHED), scale=POINTS),
            *against("test set, scratch", scratch, pruned, Bound(high=-REACHED), scale=POINTS),
        ),
        "accuracy",
        f"Reached: less than {REACHED:g} points below, a third of the published gap between "
        "scratch and pruned. Seeds share the pruned network; dead runs are left out and counted.",
    )


def dynamic_accuracy(results: Results) -> Claim:
    """Does RigL end above the static mask and SET?"""
    best = of_runs(results, "rigl+", lambda run: run.test_accuracy)
    judgements: list[Judgement] = []
    for words, recipe in (("the static mask", "shuffled+"), ("SET", "set+")):
        other = of_runs(results, recipe, lambda run: run.test_accuracy)
        window = f"test set, against {words}"
        judgements += against(window, best, other, Bound(low=0), scale=POINTS)
    return Claim(
        "rigl-accuracy",
        "RigL ends above the static mask that it starts from, and above SET.",
        "Authors' code: 97.77–98.12 % against 90.7–94.6 % (static) and 97.77–97.85 % (SET).",
        tuple(judgements),
        "accuracy",
        "All with the paper's initialisation; seeds share mask and start.",
    )


_CONNECTED = (
    f"Barrier: most by which the training error exceeds the chord; under {CONNECTED:g} points two "
    "networks count as linearly connected (Frankle et al. 2020)."
)


def _barrier(
    results: Results, recipe: str, bound: Bound, *, aligned: bool = False
) -> list[Judgement]:
    window = "training error on the line" + (", units matched" if aligned else "")
    height = of_lines(results, recipe, "end", lambda line: line.error_barrier, aligned=aligned)
    loss = of_lines(results, recipe, "end", lambda line: line.barrier, aligned=aligned)
    found = alone(window, height, bound, scale=POINTS)
    # The loss has no agreed threshold: shown, not judged.
    beside = alone(window, loss, bound, scale=NUMBER)
    text = f"; training loss: {NUMBER.words(beside[0].estimate)}" if beside else ""
    return [replace(judgement, ours=judgement.ours + text) for judgement in found]
