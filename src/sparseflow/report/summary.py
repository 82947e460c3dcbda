"""One row a recipe: every seed, the dead counted, the living summed up."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from sparseflow.report.paper import Reference, reference
from sparseflow.report.results import Results, RunFigures
from sparseflow.report.text import finite

ENOUGH = 3
"""Living runs from which a range is given."""


@dataclass(frozen=True)
class Row:
    """A recipe over its seeds.

    Attributes:
        recipe: short name.
        variant: what differs from the shared settings.
        runs: one a seed.
        median: test accuracy in % over the living runs; None if none lives.
        interval: least and greatest of the living, from three on. It holds the
            median of all runs to come with probability 1 - 2^(1 - n): 75 % for
            three, 94 % for five; so few allow no narrower claim.
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


def _row(family: str, recipe: str, variant: str, runs: tuple[RunFigures, ...]) -> Row:
    living = tuple(run.test_accuracy for run in runs if not run.dead)
    return Row(
        recipe=recipe,
        variant=variant,
        runs=runs,
        median=statistics.median(living) if living else None,
        interval=(min(living), max(living)) if len(living) >= ENOUGH else None,
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
