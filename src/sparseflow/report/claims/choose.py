"""Which runs and studies a claim rests on: one value a run, the dead and the missing counted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from sparseflow.report.claims.judge import Sample
from sparseflow.report.results import Line, Number, Results, RunFigures, Spectrum
from sparseflow.report.vocabulary import place_of

Value = Callable[[RunFigures], Number]


def runs_of(results: Results, recipe: str) -> list[RunFigures]:
    """Runs of one recipe with the settings that most share."""
    return [run for run in results.main if run.recipe == recipe]


def of_runs(results: Results, recipe: str, value: Value, *, living: bool = True) -> Sample:
    """One value a run.

    Args:
        results: of all runs.
        recipe: short name.
        value: of one run.
        living: leave out the dead and count them. At step 0 nobody is dead yet.
    """
    runs = runs_of(results, recipe)
    kept = [run for run in runs if not (living and run.dead)]
    return gather(recipe, ((run.seed, value(run)) for run in kept), dead=len(runs) - len(kept))


def gather(name: str, pairs: Iterable[tuple[str, Number]], *, dead: int = 0) -> Sample:
    """Seeds and their values, without those that are not finite."""
    found = list(pairs)
    values = {seed: float(v) for seed, v in found if v is not None and math.isfinite(v)}
    return Sample(name, values, dead, len({seed for seed, _ in found} - set(values)))


def of_lines(
    results: Results,
    recipe: str,
    when: str,
    value: Callable[[Line], Number],
    *,
    aligned: bool = False,
) -> Sample:
    """One value a line from a recipe's start or end to its pruned parent's end.

    Lines from the end of a dead run are left out and counted.
    """
    dead, kept, gone = dead_labels(results), [], 0
    for line in results.lines:
        here, there = map(place_of, line.labels)
        lineage = (there.recipe, there.seed, there.when) == ("prune", here.seed, "end")
        if (here.recipe, here.when) != (recipe, when) or not lineage or line.aligned != aligned:
            continue
        if when == "end" and (recipe, here.seed) in dead:
            gone += 1
        else:
            kept.append((here.seed, value(line)))
    return gather(recipe, kept, dead=gone)


def of_starts(results: Results, recipe: str, value: Callable[[Spectrum], Number]) -> Sample:
    """One value a network, from its Hessian spectrum at initialisation; an exact one first."""
    found: dict[str, Number] = {}
    for spectrum in sorted(results.spectra, key=lambda s: not s.exact):
        place = place_of(spectrum.label)
        if (place.recipe, place.when) == (recipe, "start"):
            found.setdefault(place.seed, value(spectrum))
    return gather(recipe, found.items())


def dead_labels(results: Results) -> set[tuple[str, str]]:
    """Recipe and seed, as labels give them, of every dead run."""
    found = {(run.recipe, str(run.seeds[2])) for run in results.main if run.dead}
    groups = results.agreement.groups if results.agreement else ()
    members = [place_of(m.label) for group in groups for m in group.members if m.dead]
    return found | {(place.recipe, place.seed) for place in members}
