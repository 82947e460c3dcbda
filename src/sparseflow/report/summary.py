"""One row a recipe: every seed, the dead counted, the living summed up."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from sparseflow.core.extra import need
from sparseflow.report.paper import Reference, reference
from sparseflow.report.results import Results, RunFigures
from sparseflow.report.text import finite

LEVEL = 0.95
ENOUGH = 3
"""Living runs from which an interval is given."""


@dataclass(frozen=True)
class Row:
    """A recipe over its seeds.

    Attributes:
        recipe: short name.
        variant: what differs from the shared settings.
        runs: one a seed.
        median: test accuracy in % over the living runs; None if none lives.
        interval: bootstrap interval of that median, from three living runs on.
        reference: what others measured, where the settings are theirs.
    """

    recipe: str
    variant: str
    runs: tuple[RunFigures, ...]
    median: float | None
    interval: tuple[float, float] | None
    reference: Reference | None

    @property
    def name(self) -> str:
        """Recipe and variant."""
        return f"{self.recipe} ({self.variant})" if self.variant else self.recipe

    @property
    def dead(self) -> int:
        """Runs that ended at chance."""
        return sum(run.dead for run in self.runs)

    @property
    def living(self) -> list[RunFigures]:
        """The others."""
        return [run for run in self.runs if not run.dead]

    @property
    def early(self) -> float | None:
        """Median over seeds of the mean gradient norm in the early window."""
        means = finite(run.early.total for run in self.runs)
        return statistics.median(means) if means else None


def rows(results: Results) -> list[Row]:
    """Rows in the order of the table."""
    grouped = groupby(results.runs, key=lambda run: (run.recipe, run.variant))
    return [_row(results.family, *key, tuple(group)) for key, group in grouped]


@functools.cache
def bootstrap(values: tuple[float, ...]) -> tuple[float, float] | None:
    """95 % percentile bootstrap interval of the median; None for fewer than three values.

    With five seeds or fewer it nearly spans them: so little do they tell.
    """
    if len(values) < ENOUGH:
        return None
    if min(values) == max(values):
        return values[0], values[0]
    stats = need("scipy.stats", extra="report")
    found = stats.bootstrap(
        (values,),
        np.median,
        confidence_level=LEVEL,
        n_resamples=4000,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


def _row(family: str, recipe: str, variant: str, runs: tuple[RunFigures, ...]) -> Row:
    living = tuple(run.test_accuracy for run in runs if not run.dead)
    return Row(
        recipe=recipe,
        variant=variant,
        runs=runs,
        median=statistics.median(living) if living else None,
        interval=bootstrap(living),
        reference=reference(family, recipe) if all(run.published for run in runs) else None,
    )


def changes(runs: Sequence[RunFigures]) -> list[tuple[int, float]]:
    """Step and relative change of the gradient norm, for all mask updates of several runs."""
    return [
        (step, after / before - 1)
        for run in runs
        if run.updates is not None
        for step, before, after in zip(
            run.updates.step, run.updates.before, run.updates.after, strict=True
        )
        if before and after is not None
    ]
