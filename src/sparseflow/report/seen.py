"""What the studies of checkpoints show: figures reduced for drawing, and sentences about them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from sparseflow.measure.statistics import Estimate, mean_interval
from sparseflow.report.paper import CURVATURE
from sparseflow.report.results import Agreement, Line, Plane, Results, Spectrum, Updates
from sparseflow.report.text import (
    change,
    count,
    estimate,
    finite,
    listing,
    minus,
    percent,
    short,
    signed,
)
from sparseflow.report.vocabulary import GROUPS, RULES, kind_of, place_of

PARENT = ("prune", "end")
"""Recipe and moment of the network at the far end of the lines."""

STARTS = {"scratch:orders": "scratch:inits 0 start", "prune-restart:orders": "prune 0 end"}
"""Where the members of a group start that have no start of their own."""


@dataclass(frozen=True)
class Effect:
    """What one rule's update does to one network, averaged over its draws.

    Attributes:
        seed: of the network's run.
        step: of its training.
        negatives: change of the number of negative eigenvalues, by the threshold before.
        norm: gradient norm after over before, minus 1 (geometric mean of the draws).
    """

    seed: str
    step: int
    negatives: float
    norm: float


def effects(results: Results) -> dict[str, list[Effect]]:
    """Effects of each rule on every network."""
    table: dict[str, list[Effect]] = {}
    for update in results.updates:
        for rule in RULES:
            found = _effect(update, rule)
            if found is not None:
                table.setdefault(rule, []).append(found)
    return table


def over_seeds(found: list[Effect], field: str) -> Estimate:
    """Mean over seeds, of the mean over each seed's steps; of the norm, a geometric one."""
    ratio = field == "norm"
    seeds = sorted({effect.seed for effect in found})

    def value(effect: Effect) -> float:
        return math.log1p(effect.norm) if ratio else effect.negatives

    mean = mean_interval(
        statistics.fmean(value(e) for e in found if e.seed == seed) for seed in seeds
    )
    if not ratio:
        return mean
    low, high = math.expm1(mean.low), math.expm1(mean.high)
    return Estimate(math.expm1(mean.value), low, high, mean.n, mean.level)


def _effect(update: Updates, rule: str) -> Effect | None:
    before = update.before
    after = [trial for trial in update.after if trial.rule == rule]
    norms = [norm for norm in finite(t.spectrum.norm for t in after) if norm > 0]
    if before.negative is None or not before.norm or not norms:
        return None
    more = statistics.fmean(t.negative for t in after) - before.negative * before.parameters
    rise = statistics.geometric_mean(norms) / before.norm - 1
    return Effect(place_of(update.label).seed, update.step, more, rise)


def update_effects(results: Results) -> str:
    """What each rule adds to the negative eigenvalues and to the gradient norm."""
    said = []
    for rule, found in effects(results).items():
        more = estimate(over_seeds(found, "negatives"), signed)
        rise = estimate(over_seeds(found, "norm"), change)
        said.append(f"{RULES[rule]} {more} negative eigenvalues, gradient norm {rise}")
    if not said:
        return ""
    seeds = {place_of(update.label).seed for update in results.updates}
    return (
        f"Mean change at one update of {count(len(results.updates), 'network')} of "
        f"{count(len(seeds), 'run')}: {'; '.join(said)}."
    )


def trained(results: Results) -> list[list[Spectrum]]:
    """Spectra of trained networks, those of one network together."""
    groups: dict[str, list[Spectrum]] = {}
    for found in results.spectra:
        if place_of(found.label).when not in ("start", ""):
            groups.setdefault(found.label, []).append(found)
    return list(groups.values())


def trained_spectra(results: Results) -> str:
    """Extreme and negative eigenvalues, exactly and by quadrature."""
    said = []
    for found in next(iter(trained(results)), []):
        low, high = percent(_round(found.low)), percent(_round(found.high))
        within = "" if found.exact else f" (between {low} and {high})"
        said.append(
            f"{spectrum_name(found)}: eigenvalues from {minus(short(found.smallest))} to "
            f"{short(found.largest)}, {percent(_round(found.negative))} negative{within}"
        )
    return f"{'; '.join(said)}." if said else ""


def spectrum_name(found: Spectrum) -> str:
    """How a spectrum was made, and over how many images."""
    return f"{'Exact' if found.exact else 'Lanczos'}, {count(found.examples, 'image')}"


def _round(share: float | None) -> float:
    return round(share, 3) if share is not None else math.nan


def at_init(results: Results) -> dict[str, list[Spectrum]]:
    """Spectra at initialisation by recipe, in the order of the table."""
    table: dict[str, list[Spectrum]] = {}
    for found in results.spectra:
        place = place_of(found.label)
        if place.when == "start" and found.largest is not None and found.smallest is not None:
            table.setdefault(place.recipe, []).append(found)
    return dict(sorted(table.items(), key=lambda item: kind_of(item[0]).order))


def others_curvature(results: Results) -> dict[str, tuple[float, float]]:
    """Eigenvalues measured with the authors' code, where the settings are theirs."""
    theirs = bool(results.main) and all(run.published for run in results.main)
    return CURVATURE.get(results.family, {}) if theirs else {}


def curvature_at_start(results: Results) -> str:
    """Largest and smallest eigenvalue by recipe, beside the authors' code."""
    others, said = others_curvature(results), []
    for recipe, found in at_init(results).items():
        large = statistics.median(finite(s.largest for s in found))
        small = statistics.median(finite(s.smallest for s in found))
        text = f"{recipe} {short(large)} and {minus(short(small))}"
        if recipe in others:
            theirs = others[recipe]
            text += f" (authors' code {theirs[0]:g} and {minus(f'{theirs[1]:g}')})"
        said.append(text)
    return f"Largest and smallest eigenvalue (median): {'; '.join(said)}." if said else ""


def lines_from(results: Results, recipe: str, when: str, *, aligned: bool) -> list[Line]:
    """Lines to the pruned solution from the starts or ends of a recipe."""
    found = []
    for line in results.lines:
        start, end = (place_of(label) for label in line.labels)
        if (
            (start.recipe, start.when, line.aligned) == (recipe, when, aligned)
            and (end.recipe, end.when) == PARENT
            and finite(line.train_loss)
        ):
            found.append(line)
    return found


def dead(line: Line, below: float) -> bool:
    """Whether the run at α = 0 ended under ``below`` %; one that has yet to start is not dead."""
    if place_of(line.labels[0]).when == "start":
        return False
    known = [
        (abs(alpha), value)
        for alpha, value in zip(line.alphas, line.test_accuracy, strict=True)
        if alpha is not None and value is not None
    ]
    return bool(known) and not min(known)[1] >= below


def highest_on_lines(results: Results) -> str:
    """How high the training loss rises on the way to the pruned solution."""
    said, gone = [], {}
    for recipe in ("lottery", "scratch", "rigl+"):
        parts = []
        for aligned in (False, True):
            found = lines_from(results, recipe, "end", aligned=aligned)
            living = [line for line in found if not dead(line, results.dead_below)]
            gone[recipe] = max(gone.get(recipe, 0), len(found) - len(living))
            tops = finite(_top(line) for line in living)
            if tops:
                top = short(statistics.median(tops))
                parts.append(f"({top} once aligned)" if aligned else top)
        if parts:
            said.append(f"from {recipe} {' '.join(parts)}")
    if not said:
        return ""
    text = f"Highest training loss on the way to the pruned solution (median): {'; '.join(said)}."
    lost = [count(n, f"{recipe} run") for recipe, n in gone.items() if n]
    return text + f" Dead, dotted and left out: {listing(lost)}." * bool(lost)


def _top(line: Line) -> float | None:
    """Highest loss between the two ends; infinite where it is not finite."""
    inside = [
        math.inf if loss is None else loss
        for alpha, loss in zip(line.alphas, line.train_loss, strict=True)
        if alpha is not None and -1e-9 <= alpha <= 1 + 1e-9
    ]
    return max(inside, default=None)


def nearness(results: Results) -> str:
    """Distances of starts and ends to the pruned solution."""
    found = results.distances
    if found is None or "prune 0 end" not in found.labels:
        return ""
    row = found.l2[found.labels.index("prune 0 end")]
    gone, said = dead_ends(results), []
    for recipe in dict.fromkeys(place_of(label).recipe for label in found.labels):
        parts = []
        for when in ("start", "end"):
            values = finite(
                value
                for label, value in zip(found.labels, row, strict=True)
                if (place_of(label).recipe, place_of(label).when) == (recipe, when)
                and label not in ("prune 0 end", *gone)
            )
            if values:
                parts.append(f"{when} {short(statistics.fmean(values))}")
        if parts and recipe != "prune":
            said.append(f"{GROUPS.get(recipe, recipe)} {', '.join(parts)}")
    stress = "" if found.stress is None else f" The map's stress is {found.stress:.2f}."
    lost = sum(label in gone for label in found.labels)
    left = f" {count(lost, 'dead run')} left out at the end, crosses on the map." * bool(lost)
    text = f"Mean L2 distance to the pruned solution: {'; '.join(said)}.{left}{stress}"
    return text if said else ""


def dead_ends(results: Results) -> set[str]:
    """Labels of the ends of runs that died."""
    groups = results.agreement.groups if results.agreement else ()
    return {member.label for group in groups for member in group.members if member.dead}


def over_plane(results: Results) -> str:
    """Highest loss on the straight ways between the three corners."""
    found = results.plane
    if found is None:
        return ""
    names = [place_of(label).recipe.replace("prune", "pruned") for label in found.labels]
    said = [
        f"{short(_highest(found, i, j))} between {names[i]} and {names[j]}"
        for i, j in ((0, 1), (0, 2), (1, 2))
    ]
    corners = [f"{short(_highest(found, i, i))} at {name}" for i, name in enumerate(names)]
    ways = f"on the straight ways it rises to {listing(said)} (read off the grid)"
    return f"Training loss is {listing(corners)}; {ways}."


def _highest(found: Plane, i: int, j: int) -> float:
    """Highest loss on the segment between two corners, bilinear on the grid."""
    x, y = (np.array(axis, dtype=float) for axis in (found.x, found.y))
    z = np.log(np.array(found.losses, dtype=float))
    a, b = np.array(found.positions, dtype=float)[[i, j]]
    best = -math.inf
    for point in np.linspace(a, b, 101 if i != j else 1):
        rows = [np.interp(point[0], x, row) for row in z]
        best = max(best, float(np.interp(point[1], y, rows)))
    return math.exp(best)


def blocks(found: Agreement) -> Iterator[tuple[str, list[int], int]]:
    """Name of each group, places of its living members in the matrix, and number of the dead."""
    place = 0
    for group in found.groups:
        here = range(place, place + len(group.members))
        place += len(group.members)
        alive = [i for i, member in zip(here, group.members, strict=True) if not member.dead]
        yield group.name, alive, len(here) - len(alive)


def mean_between(found: Agreement, rows: Iterable[int], columns: Iterable[int]) -> float | None:
    """Mean disagreement of pairs, none of a network with itself."""
    table, others = found.disagreement, list(columns)
    pairs = [(i, j) for i in rows for j in others]
    one = found.checkpoints
    values = finite(table[i][j] for i, j in pairs if one[i] != one[j])
    return statistics.fmean(values) if values else None


def within_groups(results: Results) -> str:
    """Mean disagreement within each group, least first."""
    if results.agreement is None:
        return ""
    found, lost = [], 0
    for name, alive, gone in blocks(results.agreement):
        mean = mean_between(results.agreement, alive, alive)
        lost += gone
        if mean is not None:
            found.append((mean, GROUPS.get(name, name)))
    if not found:
        return ""
    said = [f"{name} {100 * mean:.2f} %" for mean, name in sorted(found)]
    text = f"Share of test images on which two of a group disagree, least first: {listing(said)}."
    return text + f" {count(lost, 'dead run')} left out." * bool(lost)
