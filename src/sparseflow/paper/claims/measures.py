"""Which runs and studies a claim rests on: one value a run, the dead and the missing counted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from sparseflow.paper.judging import Measure, Sample
from sparseflow.plotting.vocabulary import parse_label
from sparseflow.report.results import Results, RunValues
from sparseflow.studies import Line, Spectrum
from sparseflow.studies.agreement import dead_labels
from sparseflow.studies.evidence import of
from sparseflow.studies.values import Number

Value = Callable[[RunValues], Number]


def runs_of(results: Results, recipe: str) -> list[RunValues]:
    """Runs of one recipe with the settings that most share."""
    return [run for run in results.main if run.recipe == recipe]


def of_runs(recipe: str, value: Value, *, living: bool = True) -> Measure:
    """One value a run.

    Args:
        recipe: short name.
        value: of one run.
        living: leave out the dead and count them. At step 0 nobody is dead yet.
    """

    def measure(results: Results) -> Sample:
        runs = runs_of(results, recipe)
        chosen = [run for run in runs if not (living and run.dead)]
        pairs = ((run.seed, value(run)) for run in chosen)
        return gather(recipe, pairs, dead=len(runs) - len(chosen))

    return measure


def test_accuracy(recipe: str) -> Measure:
    """Final test accuracy in %, one value a living run."""
    return of_runs(recipe, lambda run: run.test_accuracy)


def gather(name: str, pairs: Iterable[tuple[str, Number]], *, dead: int = 0) -> Sample:
    """Seeds and their values, without those that are not finite."""
    given = list(pairs)
    values = {seed: float(v) for seed, v in given if v is not None and math.isfinite(v)}
    return Sample(name, values, dead, len({seed for seed, _ in given} - set(values)))


def of_lines(
    recipe: str, when: str, value: Callable[[Line], Number], *, aligned: bool = False
) -> Measure:
    """One value a line from a recipe's start or end to its pruned parent's end.

    Lines from the end of a dead run are left out and counted.
    """

    def measure(results: Results) -> Sample:
        dead, values, gone = dead_runs(results), [], 0
        for line in of(results, Line):
            here, there = map(parse_label, line.labels)
            lineage = (there.recipe, there.seed, there.when) == ("prune", here.seed, "end")
            if (here.recipe, here.when) != (recipe, when) or not lineage or line.aligned != aligned:
                continue
            if when == "end" and (recipe, here.seed) in dead:
                gone += 1
            else:
                values.append((here.seed, value(line)))
        return gather(recipe, values, dead=gone)

    return measure


def of_starts(recipe: str, value: Callable[[Spectrum], Number]) -> Measure:
    """One value a network, from its Hessian spectrum at initialisation; an exact one first."""

    def measure(results: Results) -> Sample:
        values: dict[str, Number] = {}
        for spectrum in sorted(of(results, Spectrum), key=lambda s: not s.exact):
            place = parse_label(spectrum.label)
            if (place.recipe, place.when) == (recipe, "start"):
                values.setdefault(place.seed, value(spectrum))
        return gather(recipe, values.items())

    return measure


def dead_runs(results: Results) -> set[tuple[str, str]]:
    """Recipe and seed, as labels give them, of every dead run."""
    runs = {(run.recipe, str(run.seeds[2])) for run in results.main if run.dead}
    members = map(parse_label, dead_labels(results))
    return runs | {(place.recipe, place.seed) for place in members}
