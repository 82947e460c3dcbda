"""One row a recipe: every seed, the dead counted, the living summed up."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from sparseflow.plotting.formats import clipped, finite
from sparseflow.report.results import Results, RunValues
from sparseflow.studies import Reference

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
    runs: tuple[RunValues, ...]
    median: float | None
    interval: tuple[float, float] | None
    reference: Reference | None

    @property
    def settings(self) -> str:
        """What tells it apart from other rows of its recipe; empty if there are none."""
        return self.runs[0].settings

    @property
    def name(self) -> str:
        """Recipe, and its settings where others have other ones."""
        return f"{self.recipe} ({self.settings})" if self.settings else self.recipe

    @property
    def dead(self) -> int:
        """Runs that ended at chance."""
        return sum(run.dead for run in self.runs)

    @property
    def living(self) -> list[RunValues]:
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
    return [_row(results.references.runs, *key, tuple(group)) for key, group in grouped]


def _row(
    references: Mapping[str, Reference], recipe: str, variant: str, runs: tuple[RunValues, ...]
) -> Row:
    living = tuple(run.test_accuracy for run in runs if not run.dead)
    return Row(
        recipe=recipe,
        variant=variant,
        runs=runs,
        median=statistics.median(living) if living else None,
        interval=(min(living), max(living)) if len(living) >= ENOUGH else None,
        reference=references.get(recipe),
    )


def changes(runs: Sequence[RunValues]) -> list[tuple[int, float]]:
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


def by_recipe(runs: Sequence[RunValues]) -> dict[str, list[RunValues]]:
    """Runs of each recipe, in the order of the table."""
    groups = groupby(runs, key=lambda run: run.recipe)
    return {recipe: list(group) for recipe, group in groups}


def legend_name(recipe: str, runs: Sequence[RunValues]) -> str:
    """Recipe, how many of its runs are dead, and which of several settings they have."""
    dead = sum(run.dead for run in runs)
    shown = clipped(recipe)
    name = f"{shown} {dead}/{len(runs)} ×" if dead else shown
    settings = map(clipped, runs[0].settings.split(", ")) if runs[0].settings else ()
    return "\n".join([name, *settings])


def early_window(runs: Sequence[RunValues]) -> str:
    """Steps over which the early means of these runs' gradient norms are taken.

    >>> early_window([])
    'first twelfth of the steps'
    """
    windows = {(run.window, early_points(run) > 1) for run in runs}
    if windows and not any(several for _, several in windows):
        return "step 0 alone"
    if len(windows) != 1:
        return "first twelfth of the steps"
    return f"steps 0–{runs[0].window:,}"


def early_points(run: RunValues) -> int:
    """How many measurements the early mean is of; of a thinned curve those that are left."""
    return sum(step <= run.window for step in run.flow.step)
