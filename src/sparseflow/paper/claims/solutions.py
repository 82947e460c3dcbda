"""Where solutions lie: distances, barriers and accuracies, against the pruned network's."""

from __future__ import annotations

from dataclasses import replace

from sparseflow.paper.claims.measures import of_lines, test_accuracy
from sparseflow.paper.judging import (
    NUMBER,
    POINTS,
    Alone,
    Bound,
    Claim,
    Compare,
    Judgement,
    Measure,
    Test,
    log,
)
from sparseflow.report.results import Results

CONNECTED = 2.0
"""Points of error under which two networks count as linearly connected (Frankle et al. 2020)."""

REACHED = 0.5
"""Points of accuracy up to which a network counts as no worse than another."""


def _distance(recipe: str, when: str) -> Measure:
    return of_lines(recipe, when, lambda line: log(line.distance))


def _barrier(recipe: str, bound: Bound, *, aligned: bool = False) -> Test:
    """Judge the barrier of the error, and show that of the loss, which has no agreed threshold."""
    window = "training error on the line" + (", units matched" if aligned else "")
    error = of_lines(recipe, "end", lambda line: line.error_barrier, aligned=aligned)
    loss = of_lines(recipe, "end", lambda line: line.barrier, aligned=aligned)

    def test(results: Results) -> list[Judgement]:
        shown = Alone(window, loss, bound, NUMBER)(results)
        text = f"; training loss: {NUMBER.words(shown[0].estimate)}" if shown else ""
        judged = Alone(window, error, bound, POINTS)(results)
        return [replace(judgement, ours=judgement.ours + text) for judgement in judged]

    return test


_CONNECTED = (
    f"Barrier: most by which the training error exceeds the chord; under {CONNECTED:g} points two "
    "networks count as linearly connected (Frankle et al. 2020)."
)
_APART, _TOGETHER = Bound(low=CONNECTED), Bound(high=CONNECTED)

CLAIMS = (
    *(
        Claim(
            f"ticket-{when}",
            f"A ticket {when}s nearer to the pruned solution that it came from than scratch does.",
            "Figure 4.",
            (
                Compare(
                    f"{when} of training",
                    _distance("lottery", when),
                    _distance("scratch", when),
                    Bound(high=1),
                ),
            ),
            "map",
            f"L2 distance; each seed has its own pruned network, mask shared. {dead}",
        )
        for when, dead in (
            ("start", "Dead runs enter: at the start nobody is dead."),
            ("end", "Dead scratch runs are left out and counted."),
        )
    ),
    Claim(
        "ticket-basin",
        "No barrier separates a ticket's end from the pruned solution.",
        "Figure 5. Authors' code: the training loss goes 0.054 → 0.18 (middle) → 0.037.",
        (_barrier("lottery", _TOGETHER),),
        "paths",
        _CONNECTED,
    ),
    Claim(
        "scratch-barrier",
        "A barrier separates scratch's end from the pruned solution.",
        "Figure 5. Authors' code: the training loss goes 0.059 → 1.76 (middle) → 0.037.",
        (_barrier("scratch", _APART),),
        "paths",
        f"{_CONNECTED} Dead runs are left out and counted.",
    ),
    Claim(
        "scratch-barrier-aligned",
        "The barrier remains after scratch's units are permuted to match the pruned network's.",
        "The paper did not look.",
        (_barrier("scratch", _APART, aligned=True),),
        "paths",
        f"{_CONNECTED} Dead runs are left out and counted.",
    ),
    Claim(
        "rigl-barrier",
        "A barrier separates RigL's end from the pruned solution, as it stands and after "
        "matching units.",
        "The paper shows no line from RigL.",
        (_barrier("rigl+", _APART), _barrier("rigl+", _APART, aligned=True)),
        "paths",
        f"{_CONNECTED} RigL+ starts from a shuffled mask and other weights.",
    ),
    Claim(
        "ticket-accuracy",
        "A ticket reaches the accuracy of the pruned solution; scratch on the same mask does not.",
        "Published: ticket 98.52 ± 0.02, scratch 97.04 ± 0.15, pruned 98.53 %.",
        (
            Compare(
                "test set, ticket",
                test_accuracy("lottery"),
                test_accuracy("prune"),
                Bound(low=-REACHED),
                POINTS,
            ),
            Compare(
                "test set, scratch",
                test_accuracy("scratch"),
                test_accuracy("prune"),
                Bound(high=-REACHED),
                POINTS,
            ),
        ),
        "accuracy",
        f"Reached: less than {REACHED:g} points below, a third of the published gap between "
        "scratch and pruned. Seeds share the pruned network; dead runs are left out and counted.",
    ),
    Claim(
        "rigl-accuracy",
        "RigL ends above the static mask that it starts from, and above SET.",
        "Authors' code: 97.77–98.12 % against 90.7–94.6 % (static) and 97.77–97.85 % (SET).",
        tuple(
            Compare(
                f"test set, against {words}",
                test_accuracy("rigl+"),
                test_accuracy(recipe),
                Bound(low=0),
                POINTS,
            )
            for words, recipe in (("the static mask", "shuffled+"), ("SET", "set+"))
        ),
        "accuracy",
        "All with the paper's initialisation; seeds share mask and start.",
    ),
)
"""Claims about where solutions lie and what they reach."""
